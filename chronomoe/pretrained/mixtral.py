"""Weights between chronomoe's LanguageModel and transformers' MixtralForCausalLM.

transformers keeps q, k, v apart and calls things differently. Two layouts of experts are found on disk:
| layout | experts of a layer | written by |
|---|---|---|
| v5 | fused like ours, gate above up in one tensor: `mlp.experts.gate_up_proj` [E, 2F, D] | transformers v5 in memory |
| v4 | one by one: `block_sparse_moe.experts.3.w1` (gate), `w3` (up), `w2` (down) | most folders on the hub |

Axes: E experts, F expert width, D model dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
FUSED, APART = "mlp.", "block_sparse_moe."
"""What stands before a layer's gate and experts in the two layouts."""


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
        sliding_window=model.attention_window,
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


def from_mixtral(state: Mapping[str, Tensor], model: ModelSettings) -> dict[str, Tensor]:
    """transformers' weights under our names; the inverse of `to_mixtral`. Every tensor is asked for once."""
    renamed = {ours: state[theirs] for ours, theirs in ONCE.items() if theirs in state}
    for layer in range(model.num_layers):
        ours_prefix, theirs_prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        for ours, theirs in PER_BLOCK.items():
            renamed[ours_prefix + ours] = state[theirs_prefix + theirs]
        parts = [state[f"{theirs_prefix}self_attn.{letter}_proj.weight"] for letter in "qkv"]
        renamed[ours_prefix + "attention.qkv.weight"] = torch.cat(parts)
    return renamed


def split_experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the v5 layout in the v4 one."""
    split: dict[str, Tensor] = {}
    for name, weight in state.items():
        layer, fused, rest = name.partition(FUSED)
        if not fused:
            split[name] = weight
        elif rest == "gate.weight":
            split[f"{layer}{APART}{rest}"] = weight
        else:
            letters = ("w2",) if rest.endswith("down_proj") else ("w1", "w3")
            for letter, of_experts in zip(letters, weight.chunk(len(letters), dim=1), strict=True):
                for expert, matrix in enumerate(of_experts):
                    split[f"{layer}{APART}experts.{expert}.{letter}.weight"] = matrix
    return split


class FusedExperts(Mapping[str, Tensor]):
    """Weights of the v4 layout under the names of v5; a layer's experts are stacked when they are asked for."""

    def __init__(self, apart: Mapping[str, Tensor], num_experts: int) -> None:
        self.apart, self.num_experts = apart, num_experts

    def __getitem__(self, name: str) -> Tensor:
        layer, fused, rest = name.partition(FUSED)
        if not fused or rest == "gate.weight":
            return self.apart[f"{layer}{APART}{rest}" if fused else name]
        letters = ("w2",) if rest.endswith("down_proj") else ("w1", "w3")
        experts = (f"{layer}{APART}experts.{expert}." for expert in range(self.num_experts))
        return torch.stack([torch.cat([self.apart[f"{expert}{w}.weight"] for w in letters]) for expert in experts])

    def __iter__(self) -> Iterator[str]:
        names: dict[str, None] = {}
        for name in self.apart:
            layer, apart, rest = name.partition(APART)
            if rest.startswith("experts."):
                rest = "experts.down_proj" if rest.endswith("w2.weight") else "experts.gate_up_proj"
            names[f"{layer}{FUSED}{rest}" if apart else name] = None
        return iter(names)

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __len__(self) -> int:
        return len(set(self))
