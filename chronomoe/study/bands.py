"""Learning curves of an arm over its seeds, and what they differ by from the baseline's, at equal tokens.

    mean(x) = mean over seeds of curve_seed(x);  band = 95% bootstrap interval of that mean, point by point
    difference(x) = mean over pairs of arm_seed(x) - baseline_seed(x), with its own band
x is the number of tokens trained on, because steps of different batches are not the same work. The difference has the
narrower band: what a seed does to both curves of a pair cancels. A band holds the mean at one x with 95%; that it does
so at every x at once is less likely. Curves are interpolated linearly between the points they have and never go on
beyond them: a grid ends where the shortest curve does.

Axes: N points of a curve, G points of a grid, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.pairs import resampling_weights
from chronomoe.study.run import Curve, Run
from chronomoe.study.series import smooth, smoothing_window, thin_indices

BAND_RESAMPLES = 2_000
GRID_POINTS = 200


class TokenCurve(NamedTuple):
    tokens: NDArray[np.float64]  # [N], increasing
    value: NDArray[np.float64]  # [N], finite


class Band(NamedTuple):
    tokens: NDArray[np.float64]  # [G]
    mean: NDArray[np.float64]  # [G]
    low: NDArray[np.float64]  # [G], NaN of a single seed
    high: NDArray[np.float64]  # [G]
    seeds: int


def over_tokens(curve: Curve, tokens: Curve) -> TokenCurve:
    """A curve by the tokens its steps had seen; points outside the steps that `tokens` covers are left out."""
    if not len(tokens.step):
        return TokenCurve(np.empty(0), np.empty(0))
    inside = (curve.step >= tokens.step[0]) & (curve.step <= tokens.step[-1])
    return TokenCurve(np.interp(curve.step[inside], tokens.step, tokens.value), curve.value[inside])


def learning_curve(run: Run) -> TokenCurve:
    """The validation loss; the smoothed training loss of a run that was evaluated less than twice."""
    validation = run.curve("val/loss")
    training = run.curve("train/loss")
    curve = validation if len(validation.step) > 1 else smooth(training, smoothing_window(len(training.step)))
    return over_tokens(curve, run.curve("train/tokens"))


def token_grid(curves: Sequence[TokenCurve], limit: int = GRID_POINTS) -> NDArray[np.float64]:
    """At most `limit` of the curves' own points in the range that all of them cover; empty when there is none."""
    if not curves or not all(len(curve.tokens) for curve in curves):
        return np.empty(0)
    first, last = max(curve.tokens[0] for curve in curves), min(curve.tokens[-1] for curve in curves)
    points = np.unique(np.concatenate([curve.tokens for curve in curves]))
    points = points[(points >= first) & (points <= last)]
    return points[thin_indices(len(points), limit)] if len(points) else points


def mean_band(curves: Sequence[TokenCurve], grid_G: NDArray[np.float64]) -> Band:
    """The band of the mean of at least one curve on a grid that lies in the range of all of them."""
    value_SG = np.stack([at(curve, grid_G) for curve in curves])
    mean_G = value_SG.mean(axis=0)
    if len(curves) == 1:
        nothing = np.full_like(mean_G, np.nan)
        return Band(grid_G, mean_G, nothing, nothing, 1)
    means = resampling_weights(len(curves))[:BAND_RESAMPLES] @ value_SG
    low_G, high_G = np.quantile(means, [0.025, 0.975], axis=0)
    return Band(grid_G, mean_G, low_G, high_G, len(curves))


def difference_band(
    mine: Mapping[int, TokenCurve], theirs: Mapping[int, TokenCurve], limit: int = GRID_POINTS
) -> Band | None:
    """The band of the mean paired difference, from curves by seed; None without a pair that meets anywhere."""
    seeds = [seed for seed in mine if seed in theirs]
    grid_G = token_grid([side[seed] for seed in seeds for side in (mine, theirs)], limit)
    if not len(grid_G):
        return None
    differences = [TokenCurve(grid_G, at(mine[seed], grid_G) - at(theirs[seed], grid_G)) for seed in seeds]
    return mean_band(differences, grid_G)


def at(curve: TokenCurve, grid_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values on a grid inside the curve's range, [G]."""
    assert curve.tokens[0] <= grid_G[0]
    assert grid_G[-1] <= curve.tokens[-1]
    return np.interp(grid_G, curve.tokens, curve.value)
