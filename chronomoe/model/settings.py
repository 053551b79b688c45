"""Settings of the `model` and `router` groups."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.settings import setting


@dataclass(kw_only=True)
class ModelSettings:
    num_layers: int = setting(low=1)
    """Transformer blocks; every block has one MoE layer."""
    num_experts: int = setting(low=2)
    """Routed experts per layer."""
    dim: int = setting(low=1)
    """Width of the residual stream."""
    hidden_dim: int = setting(low=1)
    """Width of one SwiGLU expert."""
    num_heads: int = setting(low=1)
    """Query heads; must divide `dim` into an even head width (RoPE rotates pairs)."""
    num_kv_heads: int = setting(low=1)
    """Key and value heads, shared by groups of query heads; must divide `num_heads`."""
    vocab_size: int = setting(low=2)
    """Rows of the embedding; at least the tokenizer's size."""
    max_seq_len: int = setting(low=1)
    """Longest context in tokens: the capacity of the key-value cache."""
    rope_theta: float = setting(10000.0, low=1.0)
    """Base of the rotary wavelengths."""
    norm_eps: float = setting(1e-5, low=0.0)
    """Added to the mean square inside RMSNorm."""
    tie_embeddings: bool = setting(False)
    """Use the embedding matrix as the output head."""
    init_std: float = setting(0.02, low=0.0)
    """Standard deviation of every weight matrix at the start; 0.02 puts the first loss near ln(vocab_size)."""
    dense: bool = setting(False)
    """Put one SwiGLU of width top_k * hidden_dim in the place of each MoE layer: the baseline with equal active
    parameters, without routers and with nothing to control."""
    document_mask: bool = setting(False)
    """Attend only within a document of a packed sequence (documents end with the end-of-document token)."""

    @property
    def num_moe_layers(self) -> int:
        return 0 if self.dense else self.num_layers


@dataclass(kw_only=True)
class RouterSettings:
    kind: str = setting(choices=["mixtral"])
    """`mixtral`: softmax over the top-k logits (arXiv 2401.04088)."""
    top_k: int = setting(2, low=1)
    """Experts per token."""
