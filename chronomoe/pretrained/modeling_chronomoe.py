"""chronomoe's LanguageModel behind transformers' interface; travels with an exported one (package.py).

The controller's last field acts, as it did in training; nothing moves it any more. While `generate` runs, a StreamState
remembers what was read: keys and values, and the recurrent state of RWKV blocks.

Axes: B batch, S sequence, C context (past and present), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.model.state import StreamState
from chronomoe.pretrained.configuration_chronomoe import ChronomoeConfig


@dataclass
class ChronomoeOutput(ModelOutput):
    loss: Tensor | None = None
    """Cross-entropy, if there were labels."""
    logits: Tensor | None = None
    """[B, S, V]"""
    state: StreamState | None = None
    """Of all tokens so far, if `use_cache` asked for it; the next forward extends it in place."""


class ChronomoeForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = ChronomoeConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["expert_bias_LE", "log_temperature_LE", "threshold_LE"]  # noqa: RUF012
    _is_stateful = True  # a recurrent state cannot be cut back, which assisted decoding would need

    def __init__(self, config: ChronomoeConfig) -> None:
        super().__init__(config)
        settings = ModelSettings(**(config.model_settings or {}))
        self.model = LanguageModel(settings, RouterSettings(**(config.router_settings or {})), config.actuation)
        self.model.sensing = False  # no controller reads the sensor here
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """transformers calls this for what it found no weights for, which at least the sensor is."""
        if not isinstance(module, LanguageModel):
            return
        weights = module.state_dict(keep_vars=True)
        lacking = [name for name, weight in weights.items() if not getattr(weight, "_is_hf_initialized", False)]
        if len(lacking) == len(weights):
            module.reset_parameters()
        elif lacking:
            raise ValueError(f"the weights are incomplete: {lacking[0]} and {len(lacking) - 1} more are missing")
        module.sensor_LEC.zero_()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        state: StreamState | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> ChronomoeOutput | tuple[Any, ...]:
        """attention_mask: [B, C], 0 at padding, on either side, over past and present.
        labels: [B, S], the ids themselves (they are shifted here), -100 where no loss is wanted.
        state: of the tokens before these, which it is extended by in place; attention_mask covers both.
        logits_to_keep: form the logits of so many last positions; 0 of all.
        """
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask has {attention_mask.dim()} dimensions: give one of batch and context")
        if state is None and use_cache:
            state = self.model.new_state(*input_ids.shape)
        padded = attention_mask is not None and not bool(attention_mask.all())
        real_BC = attention_mask.bool() if attention_mask is not None and padded else None
        read = self.model(input_ids, real_BC=real_BC, state=state)
        logits_BSV = read.head(read.hidden_BSD[:, -logits_to_keep:])  # -0 keeps all
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BSV, labels=labels, vocab_size=self.config.vocab_size)
        output = ChronomoeOutput(loss=loss, logits=logits_BSV, state=state)
        return output if return_dict else output.to_tuple()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: StreamState | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The ids that `state` has not read yet."""
        read = 0 if state is None else state.position
        return {
            "input_ids": input_ids[:, read:],
            "attention_mask": attention_mask,
            "state": state,
            "use_cache": bool(use_cache),
            "logits_to_keep": logits_to_keep,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        if outputs.get("state") is not None:
            model_kwargs["state"] = outputs["state"]
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def _reorder_cache(self, state: StreamState, beam_idx: Tensor) -> StreamState:
        """Beam search goes on from these rows."""
        return state.select(beam_idx)
