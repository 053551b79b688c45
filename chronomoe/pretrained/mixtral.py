"""Weights between chronomoe's LanguageModel and transformers' MixtralForCausalLM (v5, experts fused).

transformers keeps q, k, v apart and calls things differently; both sides fuse gate above up in one expert tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chronomoe.model.settings import ModelSettings, RouterSettings

if TYPE_CHECKING:
    from transformers import MixtralConfig

PER_BLOCK = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn.router.gate.weight": "mlp.gate.weight",
    "ffn.experts.gate_up_EFD": "mlp.experts.gate_up_proj",
    "ffn.experts.down_EDF": "mlp.experts.down_proj",
}
ONCE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def mixtral_config(model: ModelSettings, router: RouterSettings) -> MixtralConfig:
    """The transformers configuration of the same architecture."""
    from transformers import MixtralConfig

    return MixtralConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.dim,
        intermediate_size=model.hidden_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        num_local_experts=model.num_experts,
        num_experts_per_tok=router.top_k,
        max_position_embeddings=model.max_seq_len,
        rms_norm_eps=model.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        tie_word_embeddings=model.tie_embeddings,
        sliding_window=None,
        initializer_range=model.init_std,
    )


def to_mixtral(state: dict[str, Tensor], model: ModelSettings) -> dict[str, Tensor]:
    """Our weights (or gradients, keyed alike) under transformers' names. The controller's field is left behind."""
    head_dim = model.dim // model.num_heads
    rows = [model.num_heads * head_dim] + [model.num_kv_heads * head_dim] * 2
    renamed = {theirs: state[ours] for ours, theirs in ONCE.items() if ours in state}
    for layer in range(model.num_layers):
        ours_prefix, theirs_prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        for ours, theirs in PER_BLOCK.items():
            renamed[theirs_prefix + theirs] = state[ours_prefix + ours]
        for letter, part in zip("qkv", state[ours_prefix + "attention.qkv.weight"].split(rows), strict=True):
            renamed[f"{theirs_prefix}self_attn.{letter}_proj.weight"] = part
    return renamed


def from_mixtral(state: dict[str, Tensor], model: ModelSettings) -> dict[str, Tensor]:
    """transformers' weights under our names; the inverse of `to_mixtral`."""
    renamed = {ours: state[theirs] for ours, theirs in ONCE.items() if theirs in state}
    for layer in range(model.num_layers):
        ours_prefix, theirs_prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        for ours, theirs in PER_BLOCK.items():
            renamed[ours_prefix + ours] = state[theirs_prefix + theirs]
        parts = [state[f"{theirs_prefix}self_attn.{letter}_proj.weight"] for letter in "qkv"]
        renamed[ours_prefix + "attention.qkv.weight"] = torch.cat(parts)
    return renamed
