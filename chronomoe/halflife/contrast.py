"""Models held against each other, prompt by prompt.

    difference of a prompt = mean over its texts of a statistic in one model - the same in the other
Only prompts that both models have are used; intervals resample prompts, p-values flip their signs and are corrected
(Holm) over all rows shown together. A difference between two models says nothing of a cause: they differ in more than
one thing.

Axes: P prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.cliffs import fall
from chronomoe.decay.documented import ols_slope
from chronomoe.decay.entropy import mean_interval, start_minus_end
from chronomoe.decay.intervals import Interval
from chronomoe.decay.noise import mad_deviation
from chronomoe.decay.series import FEWEST_CHUNKS, Series
from chronomoe.study.significance import holm, sign_flip_p

Statistic = Callable[[NDArray[np.float64]], float]
STATISTICS: dict[str, Statistic] = {
    "mean": lambda value_K: float(value_K.mean()),
    "slope": ols_slope,
    "start_minus_end": start_minus_end,
    "cliff": lambda value_K: float(fall(value_K[None])[0][0]),
    "noise": lambda value_K: float(mad_deviation(np.diff(value_K[None], axis=-1))[0] / np.sqrt(2)),
}
"""Of one series; `cliff` is cliffs.py's D, `noise` the deviation of its first differences over sqrt 2."""


class Difference(NamedTuple):
    one: str
    other: str
    quantity: str
    statistic: str
    prompts: int
    difference: Interval
    p: float
    corrected_p: float | None = None
    """Over all rows that are shown together."""


def differences(
    one: str, mine: Sequence[Series], other: str, theirs: Sequence[Series], quantity: str
) -> list[Difference]:
    """Of `mine` minus `theirs`; empty where they share no prompt."""
    found: dict[str, NDArray[np.float64]] = {}
    for name, statistic in STATISTICS.items():
        a, b = by_prompt(mine, statistic), by_prompt(theirs, statistic)
        difference_P = np.array([a[prompt] - b[prompt] for prompt in a if prompt in b])
        if len(difference_P) and np.isfinite(difference_P).all():
            found[name] = difference_P
    return [
        Difference(
            one=one,
            other=other,
            quantity=quantity,
            statistic=name,
            prompts=len(difference_P),
            difference=mean_interval(difference_P, np.arange(len(difference_P))),
            p=sign_flip_p(difference_P),
        )
        for name, difference_P in found.items()
    ]


def corrected(rows: Sequence[Difference]) -> list[Difference]:
    """With p-values corrected over all of them."""
    of_row = holm({number: row.p for number, row in enumerate(rows)})
    return [row._replace(corrected_p=of_row[number]) for number, row in enumerate(rows)]


def by_prompt(arm: Sequence[Series], statistic: Statistic) -> dict[str, float]:
    of: dict[str, list[float]] = defaultdict(list)
    for series in arm:
        if len(series.observed_K) >= FEWEST_CHUNKS:
            of[series.prompt].append(statistic(series.observed_K))
    return {prompt: float(np.mean(values)) for prompt, values in of.items()}
