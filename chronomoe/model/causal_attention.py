"""Causal attention of a whole training sequence as plain products, rotation included: the way for processors.

    q, k rotated ;  P = softmax(q k^T / sqrt(A) + causal) ;  y = P v
Queries are taken a block at a time, so what lies wholly in the future is never multiplied. The attention weights are
kept for the backward pass (S^2 numbers a head): at short lengths that beats forming them anew tile by tile, which is
what torch's fused kernel does and what long sequences need.

Axes: B batch, S sequence, H query heads, G key-value heads, R = H/G query heads that share one, A head width, Q queries
of a block, C keys a block may see, N = H + 2G.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronomoe.model.buffers import BUFFERS
from chronomoe.model.products import full_precision

QUERY_BLOCK = 128
LONGEST = 512
"""Sequences up to this length; beyond it the weights kept would outgrow everything else a layer keeps."""


def turn(x_BSHA: Tensor, cos_SA: Tensor, sin_SA: Tensor) -> Tensor:
    """Rotate the pairs (i, i + A/2) by their position's angle, in fp32 or wider."""
    half = x_BSHA.shape[-1] // 2
    cos_S1a, sin_S1a = cos_SA[:, None, :half], sin_SA[:, None, half:]
    first, second = x_BSHA.to(torch.promote_types(x_BSHA.dtype, cos_SA.dtype)).split(half, dim=-1)
    turned = torch.empty(x_BSHA.shape, dtype=first.dtype, device=x_BSHA.device)
    torch.mul(first, cos_S1a, out=turned[..., :half]).addcmul_(second, sin_S1a, value=-1)
    torch.mul(second, cos_S1a, out=turned[..., half:]).addcmul_(first, sin_S1a)
    return turned


class CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BSNA: Tensor, cos_SA: Tensor, sin_SA: Tensor, num_kv_heads: int) -> Tensor:
        """Returns y [B, S, H, A]."""
        (batch, length, heads, width), dtype = qkv_BSNA.shape, qkv_BSNA.dtype
        num_heads = heads - 2 * num_kv_heads
        with full_precision(qkv_BSNA.device.type):
            turned_BSMA = turn(qkv_BSNA[:, :, : num_heads + num_kv_heads], cos_SA, sin_SA)
            turned_BSMA[:, :, :num_heads] *= width**-0.5
            q_BGRSA = turned_BSMA[:, :, :num_heads].to(dtype).unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
            k_XSA = by_head(turned_BSMA[:, :, num_heads:].to(dtype))
            v_XSA = by_head(qkv_BSNA[:, :, num_heads + num_kv_heads :])
            y_BSHA = qkv_BSNA.new_empty(batch, length, num_heads, width)
            future_QQ = k_XSA.new_full((QUERY_BLOCK, QUERY_BLOCK), float("-inf")).triu(1)
            queries, weights = [], []
            for start, end in query_blocks(length):
                q_XqA = q_BGRSA[:, :, :, start:end].reshape(len(k_XSA), -1, width)
                scores_XqC = BUFFERS.lend(q_XqA, *q_XqA.shape[:2], end)
                torch.bmm(q_XqA, k_XSA[:, :end].transpose(1, 2), out=scores_XqC)
                diagonal = scores_XqC.view(len(k_XSA), -1, end - start, end)[..., start:]
                diagonal += future_QQ[: end - start, : end - start]
                weights_XqC = torch.softmax(scores_XqC, dim=-1, out=scores_XqC)
                into_block(y_BSHA, start, end, torch.bmm(weights_XqC, v_XSA[:, :end]))
                queries.append(q_XqA)
                weights.append(weights_XqC)
        ctx.save_for_backward(cos_SA, sin_SA, k_XSA, v_XSA, *queries, *weights)
        ctx.shape = qkv_BSNA.shape
        return y_BSHA

    @staticmethod
    def backward(ctx: Any, d_y_BSHA: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        cos_SA, sin_SA, k_XSA, v_XSA, *kept = ctx.saved_tensors
        queries, weights = kept[: len(kept) // 2], kept[len(kept) // 2 :]
        batch, length, _, width = ctx.shape
        num_heads, num_kv_heads = d_y_BSHA.shape[2], len(k_XSA) // batch
        wide = torch.promote_types(k_XSA.dtype, cos_SA.dtype)
        d_turned_BSMA = torch.empty(batch, length, num_heads + num_kv_heads, width, dtype=wide, device=d_y_BSHA.device)
        d_k_XSA, d_v_XSA = (torch.zeros_like(k_XSA, dtype=wide) for _ in range(2))
        d_y_BGRSA = d_y_BSHA.unflatten(2, (num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        for (start, end), q_XqA, weights_XqC in zip(query_blocks(length), queries, weights, strict=True):
            d_y_XqA = d_y_BGRSA[:, :, :, start:end].reshape(len(k_XSA), -1, width)
            d_weights_XqC = torch.bmm(d_y_XqA, v_XSA[:, :end].transpose(1, 2))
            d_scores_XqC = torch._softmax_backward_data(d_weights_XqC, weights_XqC, -1, weights_XqC.dtype)
            into_block(d_turned_BSMA, start, end, torch.bmm(d_scores_XqC, k_XSA[:, :end]))
            d_k_XSA[:, :end] += torch.bmm(d_scores_XqC.transpose(1, 2), q_XqA)
            d_v_XSA[:, :end] += torch.bmm(weights_XqC.transpose(1, 2), d_y_XqA)
        d_turned_BSMA[:, :, :num_heads] *= width**-0.5
        d_turned_BSMA[:, :, num_heads:] = d_k_XSA.unflatten(0, (batch, -1)).transpose(1, 2)
        d_qkv_BSNA = torch.empty(ctx.shape, dtype=k_XSA.dtype, device=d_y_BSHA.device)
        d_qkv_BSNA[:, :, : num_heads + num_kv_heads] = turn(d_turned_BSMA, cos_SA, -sin_SA)
        d_qkv_BSNA[:, :, num_heads + num_kv_heads :] = d_v_XSA.unflatten(0, (batch, -1)).transpose(1, 2)
        return d_qkv_BSNA, None, None, None


def query_blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def by_head(x_BSGA: Tensor) -> Tensor:
    """[B*G, S, A], contiguous."""
    return x_BSGA.transpose(1, 2).flatten(0, 1).contiguous()


def into_block(heads_BSMA: Tensor, start: int, end: int, block_XqA: Tensor) -> None:
    """Write one block's [B*G, R*Q, A] where its queries' heads stand (the first H of M)."""
    batch, width = heads_BSMA.shape[0], heads_BSMA.shape[-1]
    block_BHQA = block_XqA.view(batch, -1, end - start, width)
    heads_BSMA[:, start:end, : block_BHQA.shape[1]] = block_BHQA.transpose(1, 2)
