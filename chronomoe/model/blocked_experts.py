"""Experts on a processor: one block of rows after another, with a backward pass of its own.

    a = x W_gate_up^T ;  h = join(a) ;  y = h W_down^T
    d_h = d_y W_down ;  d_a = d_h join'(a) ;  d_x = d_a W_gate_up ;  d_W_down = d_y^T h ;  d_W_gate_up = d_a^T x

Axes: P rows sorted by expert, p rows of one expert, D model dim, F hidden dim (gate above up under swiglu), E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chronomoe.model.buffers import BUFFERS
from chronomoe.model.feedforward import Activation
from chronomoe.model.products import full_precision, into

BLOCK_SIZES = [0, *range(16, 128, 16), *(quarter << octave for octave in range(20) for quarter in (128, 160, 192, 224))]
"""Rows a block of the blocked kernel may have: 16 apart (a tile of AMX), from 128 on four an octave. A processor's
library prepares code for every number of rows it meets, which takes a millisecond and half a megabyte each."""


class BlockedExperts(torch.autograd.Function):
    """One expert's block after another, forward and backward, each product written straight into its place.

    On a processor this beats the grouped product: a block's intermediates stay in the cache, no gradient is zeroed
    before it is written, and what the activation gives is formed anew in the backward pass instead of being kept.
    Block sizes are host integers, which on a processor cost nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_PD: Tensor,
        gate_up_EFD: Tensor,
        down_EDF: Tensor,
        rows_per_expert_E: Tensor,
        activation: Activation,
        library: str,
    ) -> Tensor:
        ctx.sizes, ctx.activation, ctx.library = rows_per_expert_E.tolist(), activation, library
        multiply_into = into(library, x_PD)
        gate_up_PF, y_PD = (BUFFERS.lend(x_PD, len(x_PD), width) for width in (gate_up_EFD.shape[1], x_PD.shape[1]))
        hidden_pF = scratch(ctx.sizes, x_PD, down_EDF.shape[2])
        with full_precision(x_PD.device.type):
            for expert, (x_pD, gate_up_pF, y_pD) in enumerate(blocks(ctx.sizes, x_PD, gate_up_PF, y_PD)):
                if rows := len(x_pD):
                    multiply_into(gate_up_pF, x_pD, gate_up_EFD[expert])
                    activation.join_into(gate_up_pF, hidden_pF[:rows])
                    multiply_into(y_pD, hidden_pF[:rows], down_EDF[expert])
        ctx.save_for_backward(x_PD, gate_up_EFD, down_EDF, gate_up_PF)
        return y_PD

    @staticmethod
    def backward(ctx: Any, d_y_PD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:  # type: ignore[override]
        x_PD, gate_up_EFD, down_EDF, gate_up_PF = ctx.saved_tensors
        multiply_into = into(ctx.library, x_PD)
        hidden, d_hidden, d_gate_up = (
            scratch(ctx.sizes, x_PD, width) for width in [down_EDF.shape[2]] * 2 + [gate_up_PF.shape[1]]
        )
        d_x_PD, d_gate_up_EFD, d_down_EDF = (BUFFERS.lend(t, *t.shape) for t in (x_PD, gate_up_EFD, down_EDF))
        parts = blocks(ctx.sizes, x_PD, gate_up_PF, d_y_PD, d_x_PD)
        for expert, (x_pD, gate_up_pF, d_y_pD, d_x_pD) in enumerate(parts):
            rows = len(x_pD)
            if not rows:
                d_gate_up_EFD[expert], d_down_EDF[expert] = 0.0, 0.0
                continue
            hidden_pF, d_hidden_pF, d_gate_up_pF = hidden[:rows], d_hidden[:rows], d_gate_up[:rows]
            multiply_into(d_hidden_pF, d_y_pD, down_EDF[expert].T)
            ctx.activation.differentiate_into(gate_up_pF, d_hidden_pF, hidden_pF, d_gate_up_pF)
            multiply_into(d_down_EDF[expert], d_y_pD.T, hidden_pF.T)
            multiply_into(d_gate_up_EFD[expert], d_gate_up_pF.T, x_pD.T)
            multiply_into(d_x_pD, d_gate_up_pF, gate_up_EFD[expert].T)
        return d_x_PD, d_gate_up_EFD, d_down_EDF, None, None, None


def blocks(sizes: list[int], *rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Every expert's part of each of `rows` [P, …]; rows behind the last expert's are nobody's."""
    used = sum(sizes)
    return list(zip(*(of[:used].split(sizes) for of in rows), strict=True))


def scratch(sizes: list[int], like: Tensor, width: int) -> Tensor:
    """Room for any one block, a power of two of rows: of few different sizes, so that the memory freed by one step fits
    the next."""
    return BUFFERS.lend(like, 1 << (max(sizes, default=0) - 1).bit_length(), width)
