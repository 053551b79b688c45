"""The recurrence of RWKV-7 (arXiv 2503.14456), one token after another: the definition, and the way to decode.

    S_t = diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T ;  o_t = S_t^T r_t
The state S is key x value, one per head, and is read after it was written. It is fp32 whatever the activations are: in
bf16 a decay close to 1 would round to 1. A whole sequence at once: chunked_wkv.py, the same function.

Axes: B batch, S sequence, H heads, N head width (of keys and of values).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.model.products import full_precision

LOWEST_LOG_DECAY = -math.exp(-0.5)
"""Of RWKV-7: no channel keeps less than 0.545 of its state from token to token."""


class Inputs(NamedTuple):
    """Each [B, S, H, N]; log_w is the logarithm of the decay, at most 0."""

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor


def state_dtype(*inputs: Tensor) -> torch.dtype:
    """fp64 if any input is, else fp32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Autocast off, and fp32 products in fp32: TF32 or bf16 operands would cost three digits of the state."""
    backend = (torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn).matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        with full_precision(device_type):
            yield
    finally:
        backend.fp32_precision = before


def wkv_recurrent(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state_BHNN: Tensor,
    *,
    starts_BS: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(o, new state), o [B, S, H, N]; both in fp32, or in fp64 if an input is.

    starts_BS: True where a document begins: nothing from before that token is remembered.
    A token with log_w = 0 and k = b = 0 leaves the state as it is, bit by bit: padding.
    """
    dtype = state_dtype(r, log_w, k, v, a, b, state_BHNN)
    with exact_products(r.device.type):
        state_BHNN = state_BHNN.to(dtype)
        w_BSHN1, k_BSHN1, b_BSHN1 = (x.to(dtype)[..., None] for x in (log_w.to(dtype).exp(), k, b))
        r_BSH1N, v_BSH1N, a_BSH1N = (x.to(dtype)[..., None, :] for x in (r, v, a))
        outs = []
        for t in range(r.shape[1]):
            if starts_BS is not None:
                state_BHNN = state_BHNN.masked_fill(starts_BS[:, t, None, None, None], 0.0)
            held_BH1N = a_BSH1N[:, t] @ state_BHNN
            state_BHNN = torch.addcmul(w_BSHN1[:, t] * state_BHNN, b_BSHN1[:, t], held_BH1N)
            state_BHNN = state_BHNN.addcmul(k_BSHN1[:, t], v_BSH1N[:, t])
            outs.append(r_BSH1N[:, t] @ state_BHNN)
        return torch.stack(outs, dim=1).squeeze(-2), state_BHNN
