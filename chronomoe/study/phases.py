"""Phases of a coherence curve: change points by exact optimal partitioning, their significance, and what they are.

    y_t - m_j = a (y_(t-1) - m_j) + e_t,  e_t ~ N(0, v_j)  inside phase j;     a one for all, m_j and v_j free
    cost(phase) = n ln v - ln(1 - a^2), minus twice the log-likelihood of its n points at the best m, up to constants
    C(k) = least sum of costs over all partitions with k changes and all a in COEFFICIENTS
    number of changes = argmin over k of C(k) + k penalty;     gain = max over k >= 1 of (C(0) - C(k)) / k

Neighbouring points of a curve are alike, and a test for independent points finds changes in any such curve; hence the
AR(1) noise, whose coefficient is found together with the partition, by likelihood. (Read off the whole curve it would
take every change for persistence.) The penalty is no constant of a textbook: it is the 95% quantile of the gain in
simulated curves without a change, as long and as persistent as this one is if it has none. So a curve of AR(1) noise is
given a change with about 5% chance, and `p` says how rare the curve's own gain is there. Noise with heavy tails, or of
another kind than AR(1), is given more. Long curves are averaged in at most MAX_POINTS bins, and a phase has at least
MIN_LENGTH of them. Optimal partitioning: Jackson et al. 2005, arXiv math/0309285; AR(1) noise under changing levels:
Chakar et al., arXiv 1403.1958.

A steady drift is rendered as a staircase of phases, or as persistence: they describe, they are no mechanism. Each but
the first is called

    exploration  if its level lies further from the last phase's than that of the phase before did, or its spread grew
    settling     otherwise: the level came nearer to where it ends, or the level stayed and the spread shrank

A level has moved, or a spread grown, if the difference exceeds DEVIATIONS standard errors. Which level is final is
known in hindsight only: a curve that leaves a long phase for another one is called settling, on its new level.

Axes: N points or bins, P coefficients, K numbers of changes.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.run import Curve
from chronomoe.study.series import bin_starts

MAX_POINTS = 150
MIN_LENGTH = 10
COEFFICIENTS = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97)
SIMULATED = 299
LEVEL = 0.05
DEVIATIONS = 2.0
LEAST_VARIANCE = 1e-12
"""Beside the curve's own variance: a phase that stands still has no logarithm."""


class Phase(NamedTuple):
    first_step: int
    last_step: int
    level: float
    """Mean."""
    spread: float
    """Standard deviation of the AR(1) noise around it."""
    label: str
    """`start`, `settling` or `exploration`."""


class Phases(NamedTuple):
    phases: list[Phase]
    p: float
    """Of there being any change."""
    coefficient: float
    """Of the AR(1) noise, between neighbouring points (bins)."""

    @property
    def changes(self) -> list[int]:
        """First step of every phase but the first."""
        return [phase.first_step for phase in self.phases[1:]]


def find_phases(curve: Curve) -> Phases | None:
    """None for a curve of fewer than 2 MIN_LENGTH points, or one that never moves."""
    starts_N = bin_starts(len(curve.step), MAX_POINTS)
    if len(starts_N) < 2 * MIN_LENGTH or np.ptp(curve.value) == 0:
        return None
    edges = np.append(starts_N, len(curve.step))
    value_N = np.add.reduceat(curve.value, starts_N) / np.diff(edges)
    least_PK = least_costs(value_N)
    null_R = null_gains(len(value_N), COEFFICIENTS[int(least_PK[:, 0].argmin())])
    p = (1 + int((null_R >= gain(least_PK)).sum())) / (1 + len(null_R))
    coefficient, changes = partition(value_N, least_PK, float(np.quantile(null_R, 1 - LEVEL)))
    bounds = [0, *changes, len(value_N)]
    pieces = [value_N[low:high] for low, high in itertools.pairwise(bounds)]
    labels = ["start", *label_changes(pieces, coefficient)]
    phases = [
        Phase(
            first_step=int(curve.step[edges[low]]),
            last_step=int(curve.step[edges[high] - 1]),
            level=level(piece),
            spread=noise_deviation(piece, coefficient),
            label=label,
        )
        for (low, high), piece, label in zip(itertools.pairwise(bounds), pieces, labels, strict=True)
    ]
    return Phases(phases, p, coefficient)


def costs(value_N: NDArray[np.float64], coefficient: float) -> NDArray[np.float64]:
    """Of the phase from point i to before point j, [N, N + 1]; infinite where that is too short.

    The first point is as likely as the stationary noise makes it, the others as their shocks z make them.
    """
    value_N = (value_N - value_N.mean()) / value_N.std()
    z_N = np.append(0.0, value_N[1:] - coefficient * value_N[:-1])
    total, square = (np.append(0.0, np.cumsum(values)) for values in (z_N, z_N**2))
    length = np.arange(len(value_N) + 1)[None, :] - np.arange(len(value_N))[:, None]
    sums, squares = (values[None, :] - values[1:, None] for values in (total, square))
    first, weight, pull = value_N[:, None], 1 - coefficient**2, 1 - coefficient
    information = (length - 1) * pull**2 + weight
    rest = squares + weight * first**2 - (pull * sums + weight * first) ** 2 / np.maximum(information, weight)
    variance = np.maximum(rest, 0.0) / np.maximum(length, 1) + LEAST_VARIANCE
    return np.where(length >= MIN_LENGTH, length * np.log(variance) - np.log(weight), np.inf)


def least_by_end(cost_NN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least cost of the points before each point with 0, 1, 2, ... changes, [K, N + 1]."""
    least = [cost_NN[0]]
    for _ in range(len(cost_NN) // MIN_LENGTH - 1):
        least.append((least[-1][:-1, None] + cost_NN).min(axis=0))
    return np.array(least)


def least_costs(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least cost of the whole curve by coefficient and number of changes, [P, K]."""
    return np.array([least_by_end(costs(value_N, coefficient))[:, -1] for coefficient in COEFFICIENTS])


def gain(least_PK: NDArray[np.float64]) -> float:
    """The penalty above which the best partition has no change."""
    least_K = least_PK.min(axis=0)
    return float(((least_K[0] - least_K[1:]) / np.arange(1, len(least_K))).max())


def partition(value_N: NDArray[np.float64], least_PK: NDArray[np.float64], penalty: float) -> tuple[float, list[int]]:
    """Coefficient, and first points of every phase but the first, of least cost plus penalties."""
    number = int(np.argmin(least_PK.min(axis=0) + penalty * np.arange(least_PK.shape[1])))
    coefficient = COEFFICIENTS[int(least_PK[:, number].argmin())]
    cost_NN = costs(value_N, coefficient)
    least_KN = least_by_end(cost_NN)
    changes: list[int] = []
    end = len(value_N)
    for before in range(number - 1, -1, -1):
        end = int((least_KN[before, :-1] + cost_NN[:, end]).argmin())
        changes.append(end)
    return coefficient, changes[::-1]


@lru_cache(maxsize=64)
def null_gains(length: int, coefficient: float) -> NDArray[np.float64]:
    """`gain` of SIMULATED curves of stationary AR(1) noise without a change, [SIMULATED]."""
    rng = np.random.default_rng(0)
    return np.array([gain(least_costs(ar1(rng, length, coefficient))) for _ in range(SIMULATED)])


def ar1(rng: np.random.Generator, length: int, coefficient: float) -> NDArray[np.float64]:
    """Stationary noise of unit variance, [length]."""
    value = np.empty(length)
    value[0] = rng.normal()
    for index, shock in enumerate(rng.normal(scale=np.sqrt(1 - coefficient**2), size=length - 1)):
        value[index + 1] = coefficient * value[index] + shock
    return value


def label_changes(pieces: list[NDArray[np.float64]], coefficient: float) -> list[str]:
    """`settling` or `exploration` for every phase but the first."""
    final = level(pieces[-1])
    return [
        "exploration"
        if (has_moved(before, after, coefficient) and abs(level(after) - final) > abs(level(before) - final))
        or has_grown(before, after, coefficient)
        else "settling"
        for before, after in itertools.pairwise(pieces)
    ]


def level(piece: NDArray[np.float64]) -> float:
    return float(piece.mean())


def noise_deviation(piece: NDArray[np.float64], coefficient: float) -> float:
    """Standard deviation of AR(1) noise in one phase: that of its shocks, carried on."""
    shocks = piece[1:] - coefficient * piece[:-1]
    return float(shocks.std() / np.sqrt(1 - coefficient**2))


def has_moved(before: NDArray[np.float64], after: NDArray[np.float64], coefficient: float) -> bool:
    """Whether the levels differ by more than DEVIATIONS standard errors of means of AR(1) noise."""
    longer = (1 + coefficient) / (1 - coefficient)
    squared = sum(longer * noise_deviation(piece, coefficient) ** 2 / len(piece) for piece in (before, after))
    return bool(abs(level(after) - level(before)) > DEVIATIONS * np.sqrt(squared))


def has_grown(before: NDArray[np.float64], after: NDArray[np.float64], coefficient: float) -> bool:
    """Whether the spread grew by more than DEVIATIONS standard errors of the logarithm of a Gaussian variance."""
    less, more = (noise_deviation(piece, coefficient) ** 2 for piece in (before, after))
    error = np.sqrt(sum(2 / (len(piece) - 2) for piece in (before, after)))
    return more > less * np.exp(DEVIATIONS * error)
