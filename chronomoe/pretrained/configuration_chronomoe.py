"""transformers' configuration of a chronomoe model; travels with an exported one (package.py)."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class ChronomoeConfig(PretrainedConfig):
    """The settings of model and router and the actuation of the field, as chronomoe has them; and, under transformers'
    names, the sizes that other programs ask for."""

    model_type = "chronomoe"
    has_no_defaults_at_init = True

    def __init__(
        self,
        model_settings: dict[str, Any] | None = None,
        router_settings: dict[str, Any] | None = None,
        actuation: str = "selection",
        **kwargs: Any,
    ) -> None:
        self.model_settings, self.router_settings, self.actuation = model_settings, router_settings, actuation
        if model_settings is not None:
            kwargs["tie_word_embeddings"] = model_settings["tie_embeddings"]
            self.vocab_size = model_settings["vocab_size"]
            self.hidden_size = model_settings["dim"]
            self.num_hidden_layers = model_settings["num_layers"]
            self.num_attention_heads = model_settings["num_heads"]
            self.max_position_embeddings = model_settings["max_seq_len"]
        super().__init__(**kwargs)
