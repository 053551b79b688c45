"""The recurrence of RWKV-7 (arXiv 2503.14456), one token after another: the definition, and the way to decode.

    S_t = diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T ;  o_t = S_t^T r_t
The state S is key x value, one per head, and is read after it was written. It is fp32 whatever the activations are: in
bf16 a decay close to 1 would round to 1. A whole sequence at once: chunked_wkv.py, the same function.

Axes: B batch, S sequence, H heads, N head width (of keys and of values), Z = B*H.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from chronomoe.model.products import full_precision


def state_dtype(*inputs: Tensor) -> torch.dtype:
    """fp64 if any input is, else fp32."""
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Autocast off, and fp32 products in fp32: TF32 or bf16 operands would cost three digits of the state."""
    backend = torch.backends.cuda.matmul if device_type == "cuda" else torch.backends.mkldnn.matmul
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

    r, log_w, k, v, a, b: [B, S, H, N]; log_w is the logarithm of the decay, at most 0.
    starts_BS: True where a document begins: nothing from before that token is remembered.
    A token with log_w = 0 and k = b = 0 leaves the state as it is, bit by bit: padding.
    """
    dtype = state_dtype(r, log_w, k, v, a, b, state_BHNN)
    with exact_products(r.device.type):
        state_ZNN = state_BHNN.to(dtype).flatten(0, 1)
        read_SZ1N, erased_SZ1N, value_SZ1N = (by_step(x, dtype)[..., None, :] for x in (r, a, v))
        w_SZN1 = by_step(log_w, dtype).exp()[..., None]
        written_SZN2 = torch.stack((by_step(b, dtype), by_step(k, dtype)), dim=-1)
        outs = []
        for t in range(r.shape[1]):
            if starts_BS is not None:
                begins_Z11 = starts_BS[:, t].repeat_interleave(r.shape[2])[:, None, None]
                state_ZNN = state_ZNN.masked_fill(begins_Z11, 0.0)
            rows_Z2N = torch.cat((torch.bmm(erased_SZ1N[t], state_ZNN), value_SZ1N[t]), dim=1)
            state_ZNN = torch.baddbmm(w_SZN1[t] * state_ZNN, written_SZN2[t], rows_Z2N)
            outs.append(torch.bmm(read_SZ1N[t], state_ZNN))
        o_BSHN = torch.cat(outs, dim=1).view(*r.shape[:1], r.shape[2], *r.shape[1::2]).transpose(1, 2)
    return o_BSHN, state_ZNN.view(state_BHNN.shape)


def by_step(x_BSHN: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, B*H, N]."""
    return x_BSHN.to(dtype).transpose(0, 1).flatten(1, 2)
