"""Experts for the few tokens of a decoding step: each chosen expert's matrix is read once, where it lies.

So few products cost what reading their weights costs, so nothing is sorted, copied or filled up beyond a few rows. No
gradient.

Axes: N = T*K assignments, n blocks, C rows of a block, P = n*C rows, D model dim, F outputs of a matrix, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

FEW_BLOCK_ROWS = 4
"""Rows of a block when there are few: up to so many, a product costs what reading its weight costs."""

FEW_TOKENS = 32
"""So many have about a block's rows for each of a dozen experts, or less."""


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
