"""Pure functions on recorded series: utilisation, pooling, smoothing, thinning.

Axes: N recorded optimizer steps, L MoE layers, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.run import Curve


def utilisation(tokens_per_expert: NDArray[np.int64]) -> NDArray[np.float64]:
    """`E * share` over the last axis: 1 is a fair share, 0 an idle expert, E one that got everything.

    NaN where a layer saw no token at all: it has no shares.
    """
    total = tokens_per_expert.sum(axis=-1, keepdims=True).astype(np.float64)
    num_experts = tokens_per_expert.shape[-1]
    return num_experts * tokens_per_expert / np.where(total > 0, total, np.nan)


def utilisation_top(utilisation_values: NDArray[np.float64]) -> float:
    """Upper end of a colour scale: nearly the largest value, so that one spike does not bleach the rest; at least 2."""
    finite = utilisation_values[np.isfinite(utilisation_values)]
    return max(2.0, float(np.quantile(finite, 0.995))) if finite.size else 2.0


class PooledCounts(NamedTuple):
    """Counts of consecutive records added up in B bins."""

    edges: NDArray[np.float64]  # [B + 1], optimizer steps
    counts: NDArray[np.int64]  # [B, L, E]


def pool_counts(step: NDArray[np.int64], counts: NDArray[np.int64], limit: int) -> PooledCounts:
    """Add up neighbouring records in at most `limit` bins of (nearly) equal length, which meet midway between records.

    Counts are pooled, not shares: a bin then shows where its tokens really went.
    """
    starts = bin_starts(len(step), limit)
    first_gap, last_gap = (step[1] - step[0], step[-1] - step[-2]) if len(step) > 1 else (1, 1)
    inner = (step[starts[1:] - 1] + step[starts[1:]]) / 2
    edges = np.concatenate([[step[0] - first_gap / 2], inner, [step[-1] + last_gap / 2]])
    return PooledCounts(edges, np.add.reduceat(counts, starts, axis=0))


def thin_indices(length: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` evenly spread indices below `length`, with the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(length, limit)).round().astype(np.int64))


def thin(curve: Curve, limit: int) -> Curve:
    """At most `limit` points that keep a curve's envelope: the ends, and the extremes of each bin.

    Every k-th point would lose the spikes, which are what one looks for in a loss or MaxVio curve.
    """
    length = len(curve.step)
    if length <= limit:
        return curve
    keep = {0, length - 1}
    starts = bin_starts(length, max(1, (limit - 2) // 2))
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        keep.add(int(start + curve.value[start:stop].argmin()))
        keep.add(int(start + curve.value[start:stop].argmax()))
    indices = np.array(sorted(keep))
    return Curve(curve.step[indices], curve.value[indices])


def smooth(curve: Curve, window: int) -> Curve:
    """Centred running mean over `window` points (odd); near the ends, over those of them that exist."""
    length, half = len(curve.value), window // 2
    total = np.concatenate([[0.0], np.cumsum(curve.value)])
    low = np.maximum(np.arange(length) - half, 0)
    high = np.minimum(np.arange(length) + half + 1, length)
    return Curve(curve.step, (total[high] - total[low]) / (high - low))


def smoothing_window(length: int) -> int:
    """Odd number of points to average a training curve over: a fortieth of it, none when it is short."""
    return 1 + 2 * (length // 80)


def bin_starts(length: int, limit: int) -> NDArray[np.int64]:
    """First index of each of `min(length, limit)` consecutive bins."""
    bins = min(length, limit)
    return np.arange(bins) * length // bins
