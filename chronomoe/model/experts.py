"""A bank of experts and the kernels that run it over tokens grouped by expert.

    swiglu: expert_e(x) = W_down,e (silu(W_gate,e x) * W_up,e x)          (arXiv 2002.05202; Mixtral)
    relu:   expert_e(x) = W_down,e relu(W_up,e x)                         (Switch, arXiv 2101.03961)
Rows arrive sorted by expert, each expert's tokens one block, and the bank is products of blocks; or as a fixed number
of slots per expert, and the bank is batched products.

| kernel | how | where |
|---|---|---|
| blocked | one block after another, backward written out | processors |
| grouped | two grouped products; borders stay on the device | GPUs |
| looped | one block after another under autograd | the reference; coarse experts on GPUs |

Axes: P rows sorted by expert, p rows of one expert, C slots per expert, D model dim, F hidden dim (gate above up under
swiglu), E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, linear

from chronomoe.model.buffers import BUFFERS
from chronomoe.model.elementwise import as_chosen
from chronomoe.model.feedforward import ACTIVATIONS, Activation
from chronomoe.model.products import few, into, working

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Activation], Tensor]
"""(x_PD, gate_up_EFD, down_EDF, rows_per_expert_E, activation) -> y_PD."""

BLOCK_SIZES = [0, *range(16, 128, 16), *(quarter << octave for octave in range(20) for quarter in (128, 160, 192, 224))]
"""Rows a block of the blocked kernel may have: 16 apart (a tile of AMX), from 128 on four an octave. A processor's
library prepares code for every number of rows it meets, which takes a millisecond and half a megabyte each."""

FEW_BLOCK_ROWS = 4
"""Rows of a block when there are few: up to so many, a product costs what reading its weight costs."""

FEW_TOKENS = 32
"""So many have about a block's rows for each of a dozen experts, or less."""


def run_grouped(
    x_PD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, rows_per_expert_E: Tensor, activation: Activation
) -> Tensor:
    """All experts in two grouped products; group borders stay on the device, so nothing waits for the host."""
    ends_E = rows_per_expert_E.cumsum(0).to(torch.int32)
    hidden_PF = activation.join(grouped_mm(x_PD.contiguous(), gate_up_EFD.transpose(1, 2), offs=ends_E))
    return grouped_mm(hidden_PF, down_EDF.transpose(1, 2), offs=ends_E)


def run_looped(
    x_PD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, rows_per_expert_E: Tensor, activation: Activation
) -> Tensor:
    """One expert after another: the reference, and the way for shapes and dtypes that grouped_mm refuses."""
    blocks = x_PD.split(rows_per_expert_E.tolist())
    return torch.cat([activation.join(x_pD @ gate_up_EFD[e].T) @ down_EDF[e].T for e, x_pD in enumerate(blocks)])


def run_batched(x_ECD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, activation: Activation) -> Tensor:
    """Every expert over as many slots, [E, C, D] to [E, C, D]; an empty slot (0) gives 0."""
    return torch.bmm(activation.join(torch.bmm(x_ECD, gate_up_EFD.transpose(1, 2))), down_EDF.transpose(1, 2))


class FewBlocks(NamedTuple):
    """A handful of assignments as blocks of equally many rows."""

    experts_n: list[int]
    """Whose block it is, ascending; an expert with more rows than a block has several."""
    token_P: list[int]
    """Whose row it is, of n*C; what only fills up a block repeats token 0."""


def lay_out_few(ids_N: list[int], kept_N: list[bool] | None, top_k: int) -> tuple[list[FewBlocks], list[int]]:
    """The host's own layout, since sorting so few on the device takes longer than multiplying them: experts with one
    row, then those with more; and where each of the T*K assignments stands among all rows (0 for a dropped one)."""
    places: dict[int, list[int]] = {}
    for n, expert in enumerate(ids_N):
        if kept_N is None or kept_N[n]:
            places.setdefault(expert, []).append(n)
    groups, row_N, first = [], [0] * len(ids_N), 0
    for single in (True, False):
        lines = {expert: places[expert] for expert in sorted(places) if (len(places[expert]) == 1) == single}
        rows = min(FEW_BLOCK_ROWS, max(map(len, lines.values()), default=0))
        blocks = FewBlocks([], [])
        for expert, line in lines.items():
            for start in range(0, len(line), rows):
                block = line[start : start + rows]
                for place, n in enumerate(block, start=first + len(blocks.token_P)):
                    row_N[n] = place
                blocks.experts_n.append(expert)
                blocks.token_P.extend([n // top_k for n in block] + [0] * (rows - len(block)))
        if lines:
            groups.append(blocks)
            first += len(blocks.token_P)
    return groups, row_N


def take(rows_PD: Tensor, number_R: list[int]) -> Tensor:
    """The rows of these numbers, [R, D]."""
    if number_R == list(range(len(rows_PD))):
        return rows_PD
    return rows_PD.index_select(0, torch.tensor(number_R, device=rows_PD.device))


def run_few(x_nCD: Tensor, weight_EFD: Tensor, experts_n: list[int]) -> Tensor:
    """Each block by its expert's matrix, [n, C, F]. Weights are read where they lie: two experts are one batch whose
    stride is the distance between them; the last of an odd number is a batch of its two halves."""
    blocks, rows, _ = x_nCD.shape
    if x_nCD.dtype != torch.float32:
        return torch.stack([linear(x_nCD[n], weight_EFD[expert]) for n, expert in enumerate(experts_n)])
    y_nFC = x_nCD.new_empty(blocks, weight_EFD.shape[1], rows)
    for n in range(0, blocks - 1, 2):
        first, second = experts_n[n : n + 2]
        pair_2FD = (
            weight_EFD[first : second + 1 : second - first] if second > first else weight_EFD[first].expand(2, -1, -1)
        )
        torch.bmm(pair_2FD, x_nCD[n : n + 2].transpose(1, 2), out=y_nFC[n : n + 2])
    if blocks % 2:
        parts = 2 if weight_EFD.shape[1] % 2 == 0 else 1
        last_2FD = weight_EFD[experts_n[-1]].unflatten(0, (parts, -1))
        x_2DC = x_nCD[-1].T.expand(parts, -1, -1)
        torch.bmm(last_2FD, x_2DC, out=y_nFC[-1].unflatten(0, (parts, -1)))
    return y_nFC.view(blocks, 1, -1) if rows == 1 else y_nFC.transpose(1, 2)


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
        with torch.autocast(x_PD.device.type, enabled=False):
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


def grouped_mm_accepts(dtype: torch.dtype, *widths: int) -> bool:
    """grouped_mm multiplies fp32, fp16 and bf16 whose rows are whole multiples of 16 bytes."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16) and all(w * dtype.itemsize % 16 == 0 for w in widths)


class ExpertBank(nn.Module):
    """All experts of one layer as two packed tensors: gate and up projections fused (up alone under relu), and the
    down projection."""

    kernel: str = "auto"
    """`auto`: blocked on a processor, grouped elsewhere; a tuner may name another."""
    library: str = "torch"
    """Who multiplies fp32 on a processor."""
    elementwise: str = "eager"
    """Whether the grouped kernel's activation is `compiled`."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int, activation: str = "swiglu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_up_EFD = nn.Parameter(torch.empty(num_experts, ACTIVATIONS[activation].parts * hidden_dim, dim))
        self.down_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return working(self.gate_up_EFD, dtype), working(self.down_EDF, dtype)

    def kernel_for(self, device_type: str, dtype: torch.dtype) -> str:
        """The kernel asked for, or the nearest that takes these: grouped products refuse some dtypes and widths."""
        kernel = self.kernel
        if kernel == "auto":
            kernel = "blocked" if device_type == "cpu" else "grouped"
        if kernel == "grouped" and not grouped_mm_accepts(dtype, *self.down_EDF.shape[1:]):
            kernel = "looped"
        return kernel

    def block_sizes(self, device_type: str, dtype: torch.dtype) -> list[int] | None:
        """Numbers of rows an expert may be given; None: any."""
        return BLOCK_SIZES if self.kernel_for(device_type, dtype) == "blocked" else None

    def forward(self, x_PD: Tensor, rows_per_expert_E: Tensor) -> Tensor:
        """Rows [P, D] sorted by expert, in the dtype the products shall run in; returns rows in the same order."""
        gate_up_EFD, down_EDF = self.weights(x_PD.dtype)
        kernel = self.kernel_for(x_PD.device.type, x_PD.dtype)
        if kernel == "blocked":
            y_PD: Tensor = BlockedExperts.apply(
                x_PD.contiguous(), gate_up_EFD, down_EDF, rows_per_expert_E, ACTIVATIONS[self.activation], self.library
            )
            return y_PD
        run = run_grouped if kernel == "grouped" else run_looped
        activation = ACTIVATIONS[self.activation]
        activation = activation._replace(join=as_chosen(activation.join, self.elementwise))
        return run(x_PD, gate_up_EFD, down_EDF, rows_per_expert_E, activation)

    def few(self, x_TD: Tensor, groups: list[FewBlocks]) -> Tensor:
        """Of the rows of these blocks, one group after the other, [P, D]; without a gradient."""
        gate_up_EFD, down_EDF = self.weights(x_TD.dtype)
        join, done = ACTIVATIONS[self.activation].join, []
        for experts_n, token_P in groups:
            shape = (len(experts_n), -1, x_TD.shape[1])
            x_nCD = x_TD.expand(shape) if len(x_TD) == 1 else take(x_TD, token_P).view(shape)
            hidden_nCF = join(run_few(x_nCD, gate_up_EFD, experts_n))
            done.append(run_few(hidden_nCF.contiguous(), down_EDF, experts_n).flatten(0, 1))
        return done[0] if len(done) == 1 else torch.cat(done)

    def takes_few(self, x_TD: Tensor) -> bool:
        """Whether so few tokens are better read off one chosen expert after another than sorted."""
        return self.kernel == "auto" and few(x_TD, len(x_TD), FEW_TOKENS)

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Slots [E, C, D] in the dtype the products shall run in; returns as many."""
        return run_batched(x_ECD, *self.weights(x_ECD.dtype), ACTIVATIONS[self.activation])
