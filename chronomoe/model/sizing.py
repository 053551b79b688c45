"""How large a model is, part by part and in closed form, before any of it is allocated: parameters stored, parameters
that act on one token, and floating-point operations.

    training FLOPs per token = 3 (forward FLOPs);  forward = 2 (active matrix parameters, embedding apart)
                               + attention 2 S d per block (causal, counted once; behind a window W: 2 W (2 - W/S) d)
                               + WKV, by chunks of C tokens
An RWKV block (dim d, heads of N = 64, ranks R): 4 d^2 + 2 d (R_w + R_a + R_g) + 13 d, and 2 d R_v + d for its value
residual in all but the first. WKV forward: d/64 (14 C N + 8 N^2 + 64 + 2 (C^2 - 16)/3) FLOPs a token, the last terms
for the inverse. The built model has just so many parameters (tested for every size, on the meta device), and its
products so many operations (as torch counts them).
"""

from __future__ import annotations

from typing import NamedTuple

from chronomoe.model.chunked_wkv import CHUNK
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.rwkv import FEW_TOKENS, HEAD_DIM, lora_ranks
from chronomoe.model.schedule import RWKV
from chronomoe.model.settings import ModelSettings, RouterSettings

TRAINING_BYTES_PER_PARAMETER = 16
"""fp32 weight, gradient and AdamW's two moments, four bytes each. Activations come on top."""
INVERSE = 64 + 2 * (CHUNK**2 - 16) // 3
"""FLOPs per row of a chunk's inverse: two products in every block of 4, then two in each merging (unit_lower.py)."""
VECTORS_OF_TIME_MIX = 13
"""Six shifts, w0, a0, xi, alpha, rho, and the norm's weight and bias."""


class Size(NamedTuple):
    stored: int
    """All parameters."""
    active: int
    """Parameters that act on one token: all but the experts it is not routed to."""

    @property
    def training_bytes(self) -> int:
        return self.stored * TRAINING_BYTES_PER_PARAMETER

    def __str__(self) -> str:
        return f"{self.stored / 1e6:,.1f} M parameters, {self.active / 1e6:,.1f} M active per token"


class Part(NamedTuple):
    """One kind of parts, over all blocks."""

    stored: int
    active: int
    flops: int
    """Of one token's forward pass, at a mean position of a sequence."""


def parts(model: ModelSettings, router: RouterSettings, seq_len: int = 0) -> dict[str, Part]:
    """Name -> size of everything a model has parameters or operations in; `seq_len` tokens are read at once."""
    dim, kinds = model.dim, model.kinds
    recurrent = kinds.count(RWKV)
    attending = len(kinds) - recurrent
    found = {"embedding": fixed(model.vocab_size * dim, flops=0)}
    head = model.vocab_size * dim
    found["head"] = Part(0 if model.tie_embeddings else head, 0 if model.tie_embeddings else head, 2 * head)
    norms = 2 * len(kinds) + 1 + (model.norm == "layer")
    found["norms"] = fixed(norms * dim * (2 if model.norm == "layer" else 1), flops=0)
    if attending:
        width = dim // model.num_heads
        weights = attending * 2 * dim * width * (model.num_heads + model.num_kv_heads)
        window = min(seq_len, model.attention_window or seq_len)
        seen_twice = window * (2 * seq_len - window) // max(seq_len, 1)  # twice the keys a query sees, on average
        found["attention"] = fixed(weights, flops=2 * weights + attending * 2 * seen_twice * dim)
    if recurrent:
        rank = lora_ranks(dim)
        low_rank = 2 * dim * (rank.decay + rank.rate + rank.gate)
        residual = (recurrent - 1) * 2 * dim * rank.value
        matrices = recurrent * (4 * dim**2 + low_rank) + residual
        vectors = recurrent * VECTORS_OF_TIME_MIX * dim + (recurrent - 1) * dim
        found["time mixing"] = fixed(matrices + vectors, flops=2 * matrices + recurrent * wkv_flops(dim, seq_len))
        found["token shift"] = fixed(recurrent * dim, flops=0)
    return found | feedforward_parts(model, router)


def feedforward_parts(model: ModelSettings, router: RouterSettings) -> dict[str, Part]:
    dim, taken = model.dim, router.experts_per_token
    matrices = sum(
        (ACTIVATIONS["squared_relu" if kind == RWKV else model.activation].parts + 1) * dim for kind in model.kinds
    )
    if model.dense:
        width = round((taken + model.num_shared_experts) * model.hidden_dim)
        return {"feed-forward": fixed(matrices * width, flops=2 * matrices * width)}
    gates = model.num_layers * model.num_experts * dim
    one = matrices * model.hidden_dim  # of each block's experts
    active = round(one * taken)
    found = {"gates": fixed(gates, flops=2 * gates), "experts": Part(one * model.num_experts, active, 2 * active)}
    if model.num_shared_experts:
        shared = one * model.num_shared_experts
        found["shared experts"] = fixed(shared, flops=2 * shared)
    return found


def fixed(parameters: int, *, flops: int) -> Part:
    """A part that every token passes."""
    return Part(parameters, parameters, flops)


def wkv_flops(dim: int, seq_len: int) -> int:
    """Forward FLOPs per token of one block's WKV, the last chunk filled up; the recurrence, which reads few tokens one
    by one, does 9 N^2 a head."""
    heads, width = dim // HEAD_DIM, HEAD_DIM
    if seq_len <= FEW_TOKENS:
        return heads * 9 * width**2
    computed = -(-seq_len // CHUNK) * CHUNK
    return heads * (14 * CHUNK * width + 8 * width**2 + INVERSE) * computed // seq_len


def size_of(model: ModelSettings, router: RouterSettings) -> Size:
    found = parts(model, router).values()
    return Size(sum(part.stored for part in found), sum(part.active for part in found))


def training_flops(model: ModelSettings, router: RouterSettings, seq_len: int) -> int:
    """Per token: forward, and twice as much backward."""
    return 3 * sum(part.flops for part in parts(model, router, seq_len).values())


def solve_hidden_dim(model: ModelSettings, target: float, per_layer_experts: float, multiple: int = 8) -> int:
    """The expert width with which `per_layer_experts` experts of every block together hold `target` parameters, to the
    nearest multiple. Raises ValueError for a target that no width reaches."""
    matrices = sum(
        (ACTIVATIONS["squared_relu" if kind == RWKV else model.activation].parts + 1) * model.dim
        for kind in model.kinds
    )
    exact = target / (per_layer_experts * matrices)
    if exact <= multiple / 2:
        raise ValueError(
            f"{target:,.0f} parameters leave {exact:.1f} hidden units an expert: raise the target, or lower "
            f"model.dim or model.num_layers"
        )
    return multiple * round(exact / multiple)
