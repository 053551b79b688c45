"""Which Mixtral is one of ours, and which of our models is a Mixtral: settings there and back, or what stands between.

`mixtral_config` (mixtral.py) writes transformers' configuration; here a `config.json` of either version is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError

KEYS = {
    "num_layers": "num_hidden_layers",
    "num_experts": "num_local_experts",
    "dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Ours -> theirs."""
OF_TRAINING = ("document_mask", "init_std")
"""Settings of a model that change no logits."""


class Read(NamedTuple):
    model: ModelSettings
    router: RouterSettings


def read_mixtral_config(config: dict[str, Any]) -> Read:
    """Raises InputError, without the setting's name, for what our model cannot express or the file lacks."""
    for theirs in (*KEYS.values(), "num_experts_per_tok"):
        if not isinstance(config.get(theirs), int | float):
            raise InputError(f"config.json says {theirs}={config.get(theirs)}, and a number is needed: fetch it again")
    rope, scaling = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    kinds = {part.get("rope_type", part.get("type", "default")) for part in (rope, scaling)} - {"default"}
    heads, width = config["num_attention_heads"], config["hidden_size"]
    stands_between = {
        f"rope scaling ({', '.join(kinds)})": bool(kinds),
        f"hidden_act={config.get('hidden_act')}": config.get("hidden_act", "silu") != "silu",
        "attention_bias": bool(config.get("attention_bias")),
        f"head_dim={config.get('head_dim')} of {heads} heads in {width}": (config.get("head_dim") or width // heads)
        * heads
        != width,
        "partial rotary positions": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "quantised weights": config.get("quantization_config") is not None,
    }
    for fault, is_there in stands_between.items():
        if is_there:
            raise InputError(f"config.json asks for {fault}, which chronomoe's model does not have")
    model = ModelSettings(
        **{ours: config[theirs] for ours, theirs in KEYS.items()},
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 1e6))),  # transformers' own default
        attention_window=config.get("sliding_window"),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        init_std=float(config.get("initializer_range", ModelSettings.init_std)),
    )
    return Read(model, RouterSettings(kind="mixtral", top_k=config["num_experts_per_tok"]))


def no_mixtral(model: ModelSettings, router: RouterSettings) -> str | None:
    """The first setting that transformers' Mixtral has no place for, or None. What acts in training alone (capacity,
    jitter, losses) is no obstacle."""
    if router.kind != "mixtral":
        return f"router.kind={router.kind}"
    if router.gate != "topk_softmax":
        return f"router.gate={router.gate}"
    expressible = {*KEYS, *OF_TRAINING, "rope_theta", "attention_window", "tie_embeddings"}
    if set(model.kinds) == {"T"}:
        expressible |= {"schedule", "attention_share"}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name not in expressible and value != field.default:
            return f"model.{field.name}={value}"
    return None
