"""The recurrence of wkv.py over a whole sequence, a chunk of tokens at a time; the products are wkv_tile.py's.

    chunk by chunk: (S_0, tokens of the chunk) -> (outputs, S_C)
What a chunk needs of its own tokens alone is formed for many chunks at once, and only the state goes from one to the
next. On a processor "many" is a tile, some chunks of some sequences, that fits its cache; a GPU takes all of them. The
backward pass is written out: beside the inputs it needs three and a half numbers per channel and token (U, the
inverses, the states between chunks), and its products are exact_products, too.

Axes: B batch, S sequence, H heads, N head width (keys and values), C tokens of a chunk, M chunks, Z = B*H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chronomoe.model.wkv import Inputs, exact_products, state_dtype
from chronomoe.model.wkv_tile import Kept, differentiate_tile, in_chunks, number_documents, run_tile

CHUNK = 32
CHUNKS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Powers of two for the inverse, no longer than fp32's exponents allow."""
TILE = 64 * 32
"""Tokens times heads that a thread of a processor works on at once: what they need stays in its cache."""


def wkv_chunked(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state_BHNN: Tensor,
    *,
    starts_BS: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """What `wkv_recurrent` returns; log_w within [-0.6066, 0]. Differentiable once."""
    if chunk not in CHUNKS:
        raise ValueError(f"chunk must be one of {CHUNKS}, not {chunk}")
    o_BSHN, new_state_BHNN = ChunkedWKV.apply(state_BHNN, starts_BS, chunk, r, log_w, k, v, a, b)
    return o_BSHN, new_state_BHNN


class ChunkedWKV(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state_BHNN: Tensor, starts_BS: Tensor | None, chunk: int, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(*given)
        dtype = state_dtype(*given, state_BHNN)
        ctx.tiles = tiles(inputs.r.shape, chunk, inputs.r.device)
        o_BSHN = new_padded(inputs.r, chunk, dtype)
        new_state_BHNN = state_BHNN.to(dtype, copy=True)
        kept = []
        with exact_products(o_BSHN.device.type):
            for rows, tokens in ctx.tiles:
                done = run_tile(
                    Inputs(*(in_chunks(x[rows, tokens], chunk) for x in inputs)),
                    new_state_BHNN[rows].flatten(0, 1),
                    None if starts_BS is None else number_documents(starts_BS[rows, tokens], chunk),
                    in_chunks(o_BSHN[rows, tokens], chunk),
                )
                new_state_BHNN[rows] = done.states_MZNN[-1].view_as(new_state_BHNN[rows])
                kept.append(done)
        ctx.save_for_backward(starts_BS, *inputs, *(x for tile in kept for x in tile))
        ctx.chunk, ctx.state_dtype = chunk, state_BHNN.dtype
        return o_BSHN[:, : inputs.r.shape[1]], new_state_BHNN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o_BSHN: Tensor, d_state_BHNN: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        starts_BS, *saved = ctx.saved_tensors
        inputs, chunk = Inputs(*saved[:6]), ctx.chunk
        kept = [Kept(*saved[n : n + 3]) for n in range(6, len(saved), 3)]
        d_inputs = Inputs(*(new_padded(x, chunk, x.dtype) for x in inputs))
        d_state_BHNN = d_state_BHNN.to(kept[0].states_MZNN.dtype, copy=True)
        with exact_products(d_o_BSHN.device.type):
            for (rows, tokens), tile in reversed([*zip(ctx.tiles, kept, strict=True)]):
                d_state_ZNN = differentiate_tile(
                    Inputs(*(in_chunks(x[rows, tokens], chunk) for x in inputs)),
                    tile,
                    None if starts_BS is None else number_documents(starts_BS[rows, tokens], chunk),
                    in_chunks(d_o_BSHN[rows, tokens], chunk),
                    d_state_BHNN[rows].flatten(0, 1),
                    Inputs(*(in_chunks(d_x[rows, tokens], chunk) for d_x in d_inputs)),
                )
                d_state_BHNN[rows] = d_state_ZNN.view_as(d_state_BHNN[rows])
        length = d_o_BSHN.shape[1]
        return d_state_BHNN.to(ctx.state_dtype), None, None, *(d_x[:, :length] for d_x in d_inputs)


def tiles(shape_BSHN: torch.Size, chunk: int, device: torch.device) -> list[tuple[slice, slice]]:
    """(batch rows, tokens), in the order of the tokens. A GPU takes everything at once."""
    batch, length, heads, _ = shape_BSHN
    chunks = -(-length // chunk)
    room = TILE * torch.get_num_threads() // (chunk * heads) if device.type == "cpu" else batch * chunks
    spans = -(-chunks // max(room, 1))
    at_once = -(-chunks // spans)  # evenly: a last span of one chunk would cost nearly as much as a whole one
    rows = max(room // at_once, 1)
    return [
        (slice(row, row + rows), slice(first * chunk, (first + at_once) * chunk))
        for row in range(0, batch, rows)
        for first in range(0, chunks, at_once)
    ]


def new_padded(like_BSHN: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """Uninitialised, S rounded up to whole chunks."""
    batch, length, heads, width = like_BSHN.shape
    return like_BSHN.new_empty(batch, length + -length % chunk, heads, width, dtype=dtype)
