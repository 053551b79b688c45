"""Could chance alone have made the pairs differ so much? The sign-flip test, and corrections for many cells.

    p = share of the 2^n ways to give the n differences signs whose sum is at least as far from 0 as the observed one
If an arm does nothing, each pair is as likely to differ by d as by -d, and every way is as likely as the observed one:
the test needs no distribution (R. A. Fisher, The Design of Experiments, 1935). With n pairs p cannot fall below
2 / 2^n: five pairs never reach 0.05. Beyond EXACT_PAIRS pairs the ways are drawn: p = (1 + as far) / (1 + drawn).

    corrected p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)
S. Holm (1979): the chance of a single false alarm among m cells stays below the level, however the cells depend on each
other, which arms that share a baseline do.

    corrected p_(i) = min over j >= i of min(1, m p_(j) / j)
Y. Benjamini and Y. Hochberg (1995): of the cells below the level, the expected share of false alarms is at most the
level, if the cells are independent or move together. For many cells of which several may be real.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

EXACT_PAIRS = 16
FLIPS = 9_999
ROUNDING = 1e-12
"""Sums that differ by less, relative to the sum of absolute differences, are the same sum in another order."""

Cell = TypeVar("Cell")


def sign_flip_p(difference_N: NDArray[np.float64]) -> float:
    """Two-sided p-value of the mean of at least one paired difference."""
    size = np.abs(difference_N)
    sums = all_sums(size) if len(size) <= EXACT_PAIRS else drawn_signs(len(size)) @ size
    as_far = np.abs(sums) >= abs(difference_N.sum()) - ROUNDING * size.sum()
    return float(as_far.mean()) if len(size) <= EXACT_PAIRS else float((1 + as_far.sum()) / (1 + FLIPS))


def least_p(num_pairs: int) -> float:
    """The smallest p-value that so many pairs can reach."""
    return min(1.0, 2.0 / 2**num_pairs) if num_pairs <= EXACT_PAIRS else 1.0 / (1 + FLIPS)


def all_sums(size_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums under every choice of signs, [2^N]."""
    sums = np.zeros(1)
    for size in size_N:
        sums = np.concatenate([sums + size, sums - size])
    return sums


@lru_cache(maxsize=8)
def drawn_signs(num_pairs: int) -> NDArray[np.float64]:
    """FLIPS random choices of signs, [FLIPS, num_pairs]; the same ones for every test of so many pairs."""
    return np.random.default_rng(0).choice([-1.0, 1.0], size=(FLIPS, num_pairs))


def holm(p_values: Mapping[Cell, float]) -> dict[Cell, float]:
    """Cell -> its p-value corrected for the number of cells."""
    corrected: dict[Cell, float] = {}
    largest = 0.0
    for rank, cell in enumerate(sorted(p_values, key=lambda cell: p_values[cell])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[cell]))
        corrected[cell] = largest
    return {cell: corrected[cell] for cell in p_values}


def benjamini_hochberg(p_values: Mapping[Cell, float]) -> dict[Cell, float]:
    """Cell -> its p-value corrected for the share of false alarms."""
    corrected: dict[Cell, float] = {}
    smallest = 1.0
    ranked = sorted(p_values, key=lambda cell: p_values[cell])
    for rank in range(len(ranked), 0, -1):
        smallest = min(smallest, len(ranked) * p_values[ranked[rank - 1]] / rank)
        corrected[ranked[rank - 1]] = smallest
    return {cell: corrected[cell] for cell in p_values}
