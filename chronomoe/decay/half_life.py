"""How many chunks it takes until half is left: four answers, each of which may be that there is none.

    by tau         tau ln 2: halving of the excess over the asymptote; of an identifiable exponential only
    by threshold   the fitted curve reaches p0/2, p0 its value at chunk 0
    by midpoint    it reaches (p0 + floor)/2, floor the least the pressure can be (attainable.py)
    documented     the first chunk whose raw value is at most half of the first one; for comparison only: noise of
                   deviation 0.1 around 0.45 that never falls meets it in 44 to 49% of runs of 50 chunks
A curve that would cross after its last chunk is censored there: the fit is not asked what it cannot know.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.shapes import Family, curve_of

Status = Literal["reached", "censored", "unreachable", "not identifiable", "undefined"]


class HalfLife(NamedTuple):
    chunks: float | None
    """Counted from chunk 0; of a censored one, the chunks without it. Times the tokens of a chunk gives tokens."""
    status: Status
    """`unreachable`: the fitted curve never gets there; `undefined`: it starts at or below its goal."""


class Fitted(NamedTuple):
    """One fitted shape of one series or arm."""

    family: Family
    level: float
    effect: float
    parameter: float
    chunks: int
    """Observed."""

    def at(self, k: float) -> float:
        return float(curve_of(self.family, self.level, self.effect, self.parameter, k))


def by_tau(fitted: Fitted, identifiable: bool) -> HalfLife:
    if fitted.family != "exponential":
        return HalfLife(None, "undefined")
    return (
        HalfLife(fitted.parameter * float(np.log(2)), "reached") if identifiable else HalfLife(None, "not identifiable")
    )


def by_threshold(fitted: Fitted) -> HalfLife:
    start = fitted.at(0)
    return crossing(fitted, start / 2) if start > 0 else HalfLife(None, "undefined")


def by_midpoint(fitted: Fitted, floor: float) -> HalfLife:
    return crossing(fitted, (fitted.at(0) + floor) / 2)


def crossing(fitted: Fitted, threshold: float) -> HalfLife:
    """Where the fitted curve first is at or below the threshold."""
    if fitted.at(0) <= threshold:
        return HalfLife(None, "undefined")
    k = crossing_chunk(fitted, threshold)
    if k is None:
        return HalfLife(None, "unreachable")
    last = float(fitted.chunks - 1)
    return HalfLife(k, "reached") if k <= last else HalfLife(last, "censored")


def crossing_chunk(fitted: Fitted, threshold: float) -> float | None:
    """However far away; None if never. The curve starts above the threshold."""
    family, level, effect, parameter, _ = fitted
    if family == "linear":
        return (threshold - level) / effect if effect < 0 else None
    if family == "exponential":
        share = (threshold - level) / effect if effect > 0 else 0.0
        return -parameter * float(np.log(share)) if 0 < share < 1 else None
    return parameter if family == "step" and level + effect <= threshold else None


def documented(value_K: NDArray[np.float64]) -> HalfLife:
    """On raw values, as first published."""
    reached = np.flatnonzero(value_K <= value_K[0] / 2)
    return HalfLife(float(reached[0]), "reached") if len(reached) else HalfLife(float(len(value_K) - 1), "censored")
