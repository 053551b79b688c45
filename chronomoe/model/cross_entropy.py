"""Cross-entropy of a language model's head, a chunk of tokens at a time: the logits of all tokens are never held.

    z_t = W h_t ;  loss = mean_t (ln sum_v exp z_tv - z_t,y_t)
    d_h_t = W^T (softmax z_t - onehot y_t)/T ;  d_W = sum_t (softmax z_t - onehot y_t) h_t^T / T
The gradients are formed while a chunk's logits are at hand, in the forward pass, and only scaled in the backward pass.
The sum over chunks is taken in fp32 at least, whatever the products' dtype.

Axes: T tokens, C tokens of a chunk, D model dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronomoe.model.buffers import BUFFERS
from chronomoe.model.products import by_torch, full_precision, into, library_for

CHUNK_LOGITS = 2**21
"""Logits held at once: 8 MiB of fp32, which a processor's cache can hold."""
GPU_CHUNK_LOGITS = 2**27
"""On a GPU chunks must be large enough to fill it: 512 MiB."""


class ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, library: str, chunk: int) -> Tensor:
        multiply_into, wide = into(library, hidden_TD), torch.promote_types(hidden_TD.dtype, torch.float32)
        num_tokens, learns = len(hidden_TD), any(ctx.needs_input_grad[:2])
        d_hidden_TD = torch.empty_like(hidden_TD) if learns else None
        d_head_VD = BUFFERS.lend(head_VD, *head_VD.shape, dtype=wide).zero_() if learns else None
        products_CV, terms_CV = (BUFFERS.lend(hidden_TD, chunk, len(head_VD), dtype=d) for d in (hidden_TD.dtype, wide))
        losses = []
        with full_precision(hidden_TD.device.type):
            for start in range(0, num_tokens, chunk):
                hidden_CD, targets_C1 = hidden_TD[start : start + chunk], targets_T[start : start + chunk, None]
                product_CV, term_CV = products_CV[: len(hidden_CD)], terms_CV[: len(hidden_CD)]
                multiply_into(product_CV, hidden_CD, head_VD)
                largest_C1 = term_CV.copy_(product_CV).amax(dim=-1, keepdim=True)
                chosen_C1 = term_CV.gather(-1, targets_C1)
                total_C1 = term_CV.sub_(largest_C1).exp_().sum(dim=-1, keepdim=True)
                losses.append((largest_C1 + total_C1.log() - chosen_C1).sum())
                if d_hidden_TD is None or d_head_VD is None:
                    continue
                term_CV.scatter_add_(-1, targets_C1, -total_C1)
                d_logits_CV = torch.mul(term_CV, 1.0 / (num_tokens * total_C1), out=product_CV)
                multiply_into(d_hidden_TD[start : start + chunk], d_logits_CV, head_VD.T)
                add_product(d_head_VD, d_logits_CV, hidden_CD, library)
        ctx.save_for_backward(d_hidden_TD, d_head_VD)
        ctx.head_dtype = head_VD.dtype
        return torch.stack(losses).sum() / num_tokens

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[override]
        d_hidden_TD, d_head_VD = ctx.saved_tensors
        return d_hidden_TD * d_loss.to(d_hidden_TD.dtype), (d_head_VD * d_loss).to(ctx.head_dtype), None, None, None


def add_product(total_VD: Tensor, a_CV: Tensor, b_CD: Tensor, library: str) -> None:
    """total += a^T b; in one pass where the product has the total's dtype."""
    multiply = library_for(library, a_CV)
    if multiply is by_torch and total_VD.dtype == a_CV.dtype:
        torch.addmm(total_VD, a_CV.T, b_CD, out=total_VD)
    else:
        total_VD += multiply(a_CV.T, b_CD.T)


def cross_entropy(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, library: str = "torch") -> Tensor:
    """Mean cross-entropy in nats, fp32; `head_VD` in the dtype of `hidden_TD`."""
    held = CHUNK_LOGITS if hidden_TD.device.type == "cpu" else GPU_CHUNK_LOGITS
    chunk = min(len(hidden_TD), max(16, held // len(head_VD)))
    if not torch.is_grad_enabled():  # a Function is told of what requires a gradient, not of whether one is taken
        hidden_TD, head_VD = hidden_TD.detach(), head_VD.detach()
    loss: Tensor = ChunkedCrossEntropy.apply(hidden_TD.contiguous(), head_VD, targets_T, library, chunk)
    return loss
