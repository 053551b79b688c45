"""Does a run whose coherence moves more than its siblings' also differ from them in validation loss?

    c_sk, l_sk = changes of coherence and of validation loss of seed s from one evaluation to the next
    r_k = correlation of c_sk with l_sk over the seeds s of one arm;   r = mean of r_k over evaluations (and arms)
    null: the same with the loss of seed pi(s) beside the coherence of seed s, for permutations pi of the seeds

Both curves drift as training goes on, so their correlation over time says that time passed: two runs that have never
met correlate as well as a run does with itself. Differences drift too, because both curves flatten, and a null that
shuffles times tears apart what the drift holds together and finds it in every pair of curves (docs/statistics.md has
how often). Here nothing is compared with another time: at each evaluation the seeds of an arm, which share it and all
their settings, are compared with each other. Whole seeds are exchanged, so that each keeps its own time course, and the
same exchange is made in all arms, because arms share seeds: the null is exact for any drift and any autocorrelation.
It is as coarse as the seeds are few: p cannot fall below 1 / S!, and below two seeds there is none.

The same on the last evaluation's values instead of changes asks of finished runs: was the more coherent one the better?
Coherence at an evaluation is the mean over the logged steps since the one before. Axes: S seeds, K evaluations, C
columns (evaluations of one arm, or of several side by side).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.run import Curve, Run

SHUFFLES = 999
EXACT_SEEDS = 6
"""Up to 720 permutations are all tried; of more, SHUFFLES are drawn."""
ROUNDING = 1e-12
COHERENCE = "chrono/coherence"


class Association(NamedTuple):
    r: float
    """Mean correlation over seeds, in [-1, 1]; positive: more coherence goes with more loss."""
    null_mean: float
    null_sd: float
    p: float
    """Two-sided."""
    seeds: int
    columns: int
    """Correlations that the mean is over: evaluations (less one for changes) times arms."""


class Panel(NamedTuple):
    """One arm at the evaluations that all its runs have."""

    seeds: list[int]
    coherence_SK: NDArray[np.float64]
    loss_SK: NDArray[np.float64]


def read_panel(runs: Mapping[int, Run], column: str = COHERENCE) -> Panel | None:
    """None where a run has no coherence, or no evaluation is common to all."""
    curves = [(run.curve(column), run.curve("val/loss")) for run in runs.values()]
    steps_K = reduce(np.intersect1d, (loss.step for _, loss in curves))
    coherence_SK = np.array([means_between(coherence, steps_K) for coherence, _ in curves])
    loss_SK = np.array([loss.value[np.isin(loss.step, steps_K)] for _, loss in curves])
    there_K = np.isfinite(coherence_SK).all(axis=0)
    return Panel(list(runs), coherence_SK[:, there_K], loss_SK[:, there_K]) if there_K.any() else None


def means_between(curve: Curve, steps_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of the curve after the step before up to each step, [K]; NaN where it has no point there."""
    place = np.searchsorted(steps_K, curve.step)  # the first step that is not before the point's
    total, count = (np.bincount(place, weight, len(steps_K) + 1)[:-1] for weight in (curve.value, None))
    return np.divide(total, count, out=np.full(len(steps_K), np.nan), where=count > 0)


def of_changes(panels: Sequence[Panel]) -> Association | None:
    """Over the seeds that all panels have; None with fewer than two of them, or where nothing changes."""
    return over_common_seeds(panels, lambda values_SK: np.diff(values_SK, axis=1))


def of_ends(panels: Sequence[Panel]) -> Association | None:
    """The same of the last evaluation's values."""
    return over_common_seeds(panels, lambda values_SK: values_SK[:, -1:])


def over_common_seeds(
    panels: Sequence[Panel], of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Association | None:
    common = sorted(set.intersection(*(set(panel.seeds) for panel in panels))) if panels else []
    sides = []
    for name in ("coherence_SK", "loss_SK"):
        columns = [of(getattr(panel, name)[[panel.seeds.index(seed) for seed in common]]) for panel in panels]
        sides.append(np.concatenate(columns, axis=1) if columns else np.empty((0, 0)))
    return associate(*sides)


def associate(x_SC: NDArray[np.float64], y_SC: NDArray[np.float64]) -> Association | None:
    """Mean over columns of the correlation over rows, and what it is when the rows of `y_SC` are exchanged."""
    num_seeds = len(x_SC)
    if num_seeds < 2:
        return None
    x_SC, y_SC = (centred(values) for values in (x_SC, y_SC))
    moving_C = (x_SC**2).sum(axis=0) * (y_SC**2).sum(axis=0) > 0
    if not moving_C.any():
        return None
    x_SC, y_SC = (values[:, moving_C] / np.linalg.norm(values[:, moving_C], axis=0) for values in (x_SC, y_SC))
    products_SS = x_SC @ y_SC.T / moving_C.sum()
    r = float(np.trace(products_SS))
    null_R = products_SS[np.arange(num_seeds), exchanges(num_seeds)].sum(axis=1)
    as_far = int((np.abs(null_R) >= abs(r) - ROUNDING).sum())
    exact = num_seeds <= EXACT_SEEDS
    return Association(
        r=r,
        null_mean=float(null_R.mean()),
        null_sd=float(null_R.std()),
        p=as_far / len(null_R) if exact else (1 + as_far) / (1 + len(null_R)),
        seeds=num_seeds,
        columns=int(moving_C.sum()),
    )


def centred(values_SC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Minus the mean over seeds; exactly 0 where all seeds are the same."""
    same_C = (values_SC == values_SC[:1]).all(axis=0)
    return np.where(same_C, 0.0, values_SC - values_SC.mean(axis=0))


@lru_cache(maxsize=8)
def exchanges(num_seeds: int) -> NDArray[np.int64]:
    """Permutations [R, S]: all of them, the identity among them, or SHUFFLES drawn ones."""
    if num_seeds <= EXACT_SEEDS:
        return np.array(list(itertools.permutations(range(num_seeds))))
    rng = np.random.default_rng(0)
    return np.array([rng.permutation(num_seeds) for _ in range(SHUFFLES)])


def over_time(panel: Panel) -> float | None:
    """What misleads: the correlation over evaluations of coherence with loss, mean over the runs."""
    found = [correlation(*pair) for pair in zip(panel.coherence_SK, panel.loss_SK, strict=True)]
    finite = [value for value in found if value is not None]
    return float(np.mean(finite)) if finite else None


def correlation(x_K: NDArray[np.float64], y_K: NDArray[np.float64]) -> float | None:
    """None where either does not vary."""
    if np.ptp(x_K) == 0 or np.ptp(y_K) == 0:
        return None
    return float(np.corrcoef(x_K, y_K)[0, 1])
