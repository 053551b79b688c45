"""Does the pressure change where the text breaks: at a paragraph's end, a heading, the end of a list?

    effect = mean of dP at flagged chunks - mean of dP at the others;   dP_k = P_k - P_(k-1)
    null: the flags of every run are shifted around it by a random number of chunks, each run by its own
A shift keeps how many breaks a run has and how they are spaced, and the series with its memory as it is; only their
alignment is lost. Chunk 0 has no dP, so its flag is not used.

Axes: K changes of a run, R shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHIFTS = 999
ROUNDING = 1e-12


class BoundaryEffect(NamedTuple):
    effect: float
    """Change per chunk, in units of the series."""
    p: float
    """Two-sided, about the mean of the null."""
    flagged: int
    unflagged: int


def boundary_effect(
    values: Sequence[NDArray[np.float64]], flags: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> BoundaryEffect | None:
    """None where no chunk, or every one, is flagged."""
    changes = [np.diff(value_K) for value_K in values]
    marks = [flag_K[1:].astype(np.float64) for flag_K in flags]
    flagged, number = int(sum(mark.sum() for mark in marks)), sum(map(len, marks))
    if not 0 < flagged < number:
        return None
    total = sum(float(change.sum()) for change in changes)
    sum_R = np.zeros(SHIFTS + 1)  # the first is the shift by 0
    for change, mark in zip(changes, marks, strict=True):
        if len(change):
            shift_R = np.append(0, rng.integers(len(change), size=SHIFTS))
            sum_R += shifted_sums(change, mark)[shift_R]
    effect_R = sum_R / flagged - (total - sum_R) / (number - flagged)
    far_R = np.abs(effect_R - effect_R[1:].mean())
    as_far = int((far_R[1:] >= far_R[0] - ROUNDING * np.abs(effect_R).max()).sum())
    return BoundaryEffect(float(effect_R[0]), (1 + as_far) / (1 + SHIFTS), flagged, number - flagged)


def shifted_sums(change_K: NDArray[np.float64], mark_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of the changes at the flags shifted by 0, 1, ..., K - 1 chunks, [K]."""
    places = np.flatnonzero(mark_K)[:, None] + np.arange(len(change_K))
    return change_K[places % len(change_K)].sum(axis=0)
