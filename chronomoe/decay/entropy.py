"""How an entropy moves over a run: its start against its end.

    change = mean of the first 30% of chunks - mean of the last 30%;   slope = OLS on the chunk number
    change > 0.05: collapse;  < -0.05: increasing;  else: stable     (labels as first documented, for entropy / ln E)
The labels have no error of their own: the interval over prompts says what chance does. Entropy also moves with the
position in a text, so the change means something only beside that of human text of equal length, read by the same
model.

Axes: S series.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.documented import ols_slope
from chronomoe.decay.intervals import Interval, cluster_interval

SHARE = 0.3
LARGEST_STABLE = 0.05


class Evolution(NamedTuple):
    change: Interval
    """Start minus end: positive where entropy falls."""
    slope: Interval
    """Per chunk."""
    label: Literal["collapse", "increasing", "stable"]
    """Of the estimate."""


def evolution(values: Sequence[NDArray[np.float64]], prompt_S: NDArray[np.int64]) -> Evolution:
    """Mean over series of at least one chunk each, with intervals over prompts."""
    change = mean_interval(np.array([start_minus_end(value_K) for value_K in values]), prompt_S)
    slope = mean_interval(np.array([ols_slope(value_K) for value_K in values]), prompt_S)
    moved = change.estimate or 0.0
    label: Literal["collapse", "increasing", "stable"] = "increasing" if moved < -LARGEST_STABLE else "stable"
    return Evolution(change, slope, "collapse" if moved > LARGEST_STABLE else label)


def start_minus_end(value_K: NDArray[np.float64]) -> float:
    chunks = max(1, int(SHARE * len(value_K)))
    return float(value_K[:chunks].mean() - value_K[-chunks:].mean())


def mean_interval(value_S: NDArray[np.float64], prompt_S: NDArray[np.int64]) -> Interval:
    """Of the mean of one number a series."""
    return cluster_interval(lambda weight_BS: weight_BS @ value_S / weight_BS.sum(axis=1), prompt_S)
