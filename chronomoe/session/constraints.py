"""The constraint penalty: how far a text has left what a calibration text looks like.

    v = sum_j max(0, (g_j - theta_j) / sd_j)
theta_j is the 99th percentile of g_j on the calibration text and sd_j its standard deviation there, so that v counts
calibration standard deviations.

| g | meaning |
|---|---|
| repetition | share of the 4-grams of the last 100 tokens that came before among them |
| surprise | mean surprisal of the last 20 tokens, nats |
| saturation | largest share of an expert in the mean distribution of the last 20 tokens, largest over layers |
| d_macro | distance of the mid from the slow clock |
Windows run over the prompt and what was generated, never over inserted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from chronomoe.session.clock_heads import Doubles
from chronomoe.settings import InputError

CONSTRAINTS = ("repetition", "surprise", "saturation", "d_macro")
NONE = "none"
QUANTILE = 0.99
SHORT_WINDOW = 20
"""Tokens that surprise and saturation are means of."""


class Threshold(NamedTuple):
    theta: float
    sd: float


def threshold_of(values: Doubles) -> Threshold:
    return Threshold(float(np.quantile(values, QUANTILE)), float(values.std()))


def chosen(names: Sequence[str]) -> list[str]:
    """The constraints a setting names, none for `none`. Raises InputError for a name that does not exist."""
    if list(names) == [NONE]:
        return []
    unknown = [name for name in names if name not in CONSTRAINTS]
    if unknown or not names or len(set(names)) < len(names):
        raise InputError(
            f"constraints={list(names)}: give each at most once of {', '.join(CONSTRAINTS)}; or {NONE}, which deletes "
            "the penalty"
        )
    return list(names)


def penalty(values: dict[str, Doubles], thresholds: dict[str, Threshold]) -> Doubles:
    """v of every token, from the g of every token; not a number where a g is not."""
    parts = [np.maximum(0.0, (values[name] - theta) / sd) for name, (theta, sd) in thresholds.items()]
    result: Doubles = np.sum(parts, axis=0)
    return result
