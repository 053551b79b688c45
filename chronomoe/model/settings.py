"""Settings of the `model` and `router` groups."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from chronomoe.model.schedule import SCHEDULES, TRANSFORMER
from chronomoe.settings import setting


@dataclass(kw_only=True)
class ModelSettings:
    num_layers: int = setting(low=1)
    """Blocks; every block has one MoE layer."""
    schedule: str = setting("transformer")
    """Which blocks attend and which are RWKV-7: `transformer` (all attend); `top`, `interleave` or `hybrid`, where
    `attention_share` of them do (schedule.py); or the blocks one by one, such as RRRT."""
    attention_share: str = setting("1/4")
    """Share of a hybrid's blocks that attend, as a fraction."""
    num_experts: int = setting(low=2)
    """Routed experts per layer."""
    num_shared_experts: int = setting(0, low=0)
    """Experts every token visits beside the routed ones, never routed, weighed or counted (DeepSeekMoE 2401.06066)."""
    dim: int = setting(low=1)
    """Width of the residual stream."""
    hidden_dim: int = setting(low=1)
    """Width of one expert."""
    activation: str = setting("swiglu", choices=["swiglu", "relu", "squared_relu", "gelu"])
    """Inside an expert: silu(gate) * up (Mixtral), or without a gate relu(up) (Switch), its square, or gelu(up).
    Experts of an RWKV block always have the squared relu."""
    num_heads: int = setting(low=1)
    """Query heads; must divide `dim` into an even head width (RoPE rotates pairs)."""
    num_kv_heads: int = setting(low=1)
    """Key and value heads, shared by groups of query heads; must divide `num_heads`."""
    vocab_size: int = setting(low=2)
    """Rows of the embedding; at least the tokenizer's size."""
    max_seq_len: int = setting(low=1)
    """Longest context in tokens: the capacity of the key-value cache."""
    positions: str = setting("rope", choices=["rope", "none"])
    """How attention knows positions: rotary angles, or not at all, since a hybrid's recurrence knows them. Without a
    recurrence the causal mask alone then tells what came before (arXiv 2305.19466)."""
    rope_theta: float = setting(10000.0, low=1.0)
    """Base of the rotary wavelengths."""
    attention_window: int | None = setting(None, low=1)
    """Tokens that attention looks back, itself included; null looks back to the start. With a window, streaming takes
    constant memory."""
    norm: str = setting("rms", choices=["rms", "layer"])
    """RMSNorm, or LayerNorm with a bias and one more behind the embedding (RWKV)."""
    norm_eps: float = setting(1e-5, low=0.0)
    """Added to the mean square (of LayerNorm, the variance) inside a norm."""
    tie_embeddings: bool = setting(False)
    """Use the embedding matrix as the output head."""
    init_std: float = setting(0.02, low=0.0)
    """Standard deviation of every weight matrix at the start; 0.02 puts the first loss near ln(vocab_size)."""
    dense: bool = setting(False)
    """Put one layer as wide as all the experts a token visits in the place of each MoE layer: the baseline with equal
    active parameters, without routers and with nothing to control."""
    document_mask: bool = setting(False)
    """Attend only within a document of a packed sequence (documents end with the end-of-document token)."""

    @property
    def kinds(self) -> list[str]:
        """T or R of every block."""
        if self.schedule == "transformer":
            return [TRANSFORMER] * self.num_layers
        if self.schedule in SCHEDULES:
            return SCHEDULES[self.schedule](self.num_layers, Fraction(self.attention_share))
        return list(self.schedule)

    @property
    def longest_text(self) -> float:
        """Tokens that can be read in one go of streaming: without end where attention looks through a window."""
        bounded = TRANSFORMER in self.kinds and self.attention_window is None
        return self.max_seq_len if bounded else float("inf")

    @property
    def num_moe_layers(self) -> int:
        return 0 if self.dense else self.num_layers


@dataclass(kw_only=True)
class RouterSettings:
    kind: str = setting(choices=["mixtral", "switch", "expert_choice"])
    """`mixtral`: every token takes its top-k experts (arXiv 2401.04088); `switch`: its best one, weighed by that one's
    probability (2101.03961); `expert_choice`: every expert takes its best tokens (2202.09368)."""
    gate: str = setting("topk_softmax", choices=["topk_softmax", "softmax", "sigmoid"])
    """What ranks experts and weighs them: the logits and a softmax over the chosen; the softmax over all, chosen
    afterwards and not renormalised; sigmoids, normalised over the chosen. Bias is in units of these scores."""
    top_k: int = setting(2, low=1)
    """Experts per token; without meaning for `expert_choice`."""
    capacity_factor: float | None = setting(None)
    """Token choice: an expert takes at most its fair share of a batch's assignments times this, and drops the rest, in
    training only; null drops nothing. Expert choice: mean experts per token, required. Above 0."""
    jitter: float = setting(0.0, low=0.0, high=1.0)
    """In training the router (not the expert) sees its input times a uniform draw from 1 - jitter to 1 + jitter."""
    causal: bool = setting(True)
    """Expert choice by thresholds that follow past batches, which a language model needs; false lets an expert compare
    all tokens of the batch, later ones included: no honest loss, no decoding."""
    load_balancing_weight: float = setting(0.0, low=0.0)
    """Weight of the load-balancing loss (Switch: 0.01); 0 does not compute it."""
    load_balancing_scope: str = setting("micro_batch", choices=["micro_batch", "global_batch"])
    """Tokens whose loads are to be balanced: those of one process's micro-batch, or of the whole optimizer step. With
    gradient accumulation the latter routes a step's micro-batches once more, ahead of training on them."""
    z_loss_weight: float = setting(0.0, low=0.0)
    """Weight of the router z-loss (ST-MoE: 0.001); 0 does not compute it."""

    @property
    def experts_per_token(self) -> float:
        """Routed experts a token visits, on average over tokens."""
        return self.capacity_factor or 0.0 if self.kind == "expert_choice" else self.top_k
