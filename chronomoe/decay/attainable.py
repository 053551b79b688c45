"""What range a pressure can have at all, what it is made of, and what is left of it when an input stands still.

    attainable = least and greatest pressure with every input at its 1st or 99th percentile (all combinations)
    share_i = cov(term_i, P) / var(P);   shares of all terms of a sum P add up to 1
    frozen_i = var and slope of P with input i at its mean, over those of P
A half-life that lies outside the attainable range is not long, it is impossible; a pressure whose inputs are constants
has one value. The pressure is a function of named inputs that is monotone in each of them, as all pressures here are:
its extremes are at the corners.

Axes: N observations, whatever runs and chunks they are of; C corners.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Inputs = Mapping[str, NDArray[np.float64]]
Pressure = Callable[[Inputs], NDArray[np.float64]]
"""Inputs of any one shape -> the pressure in that shape."""
PERCENTILES = (1, 99)
ROUNDING = 1e-12


class Attainable(NamedTuple):
    low: float
    high: float
    start: float
    """p_0."""
    half_reachable: bool
    """Whether p_0 / 2 lies within."""
    frozen: list[str]
    """Inputs that do not vary."""


class Frozen(NamedTuple):
    """The pressure with one input at its mean, beside the pressure itself; None where that does not vary."""

    variance_ratio: float | None
    slope_ratio: float | None


def attainable_range(pressure: Pressure, inputs: Inputs, start: float) -> Attainable:
    """From all observations of an arm; `start` is the mean pressure of the first chunks."""
    ends = {name: np.percentile(value_N, PERCENTILES) for name, value_N in inputs.items()}
    corners = np.array(list(itertools.product(*ends.values())))
    pressure_C = pressure({name: corners[:, index] for index, name in enumerate(ends)})
    low, high = float(pressure_C.min()), float(pressure_C.max())
    frozen = [name for name, value_N in inputs.items() if np.ptp(value_N) == 0]
    return Attainable(low, high, start, low <= start / 2 <= high, frozen)


def variance_shares(
    terms: Mapping[str, NDArray[np.float64]], pressure_N: NDArray[np.float64]
) -> dict[str, float] | None:
    """Of every term, and of `clipping`: the pressure minus their sum. None where the pressure does not vary."""
    if np.ptp(pressure_N) <= ROUNDING * np.abs(pressure_N).max():
        return None
    parts = {**terms, "clipping": pressure_N - sum(terms.values())}
    centred_N = pressure_N - pressure_N.mean()
    return {name: float(value_N @ centred_N / (centred_N @ centred_N)) for name, value_N in parts.items()}


def freeze(pressure: Pressure, inputs: Inputs, chunk_N: NDArray[np.int64]) -> dict[str, Frozen]:
    """For every input: the pressure with that input at its mean over all observations, at chunks `chunk_N`."""
    whole = spread_and_slope(pressure(inputs), chunk_N)
    ablation = {}
    for name, value_N in inputs.items():
        without = spread_and_slope(pressure({**inputs, name: np.full_like(value_N, value_N.mean())}), chunk_N)
        ratios = [float(part / of) if of else None for part, of in zip(without, whole, strict=True)]
        ablation[name] = Frozen(*ratios)
    return ablation


def spread_and_slope(pressure_N: NDArray[np.float64], chunk_N: NDArray[np.int64]) -> tuple[float, float]:
    """Variance, and OLS slope per chunk; exactly 0 where the pressure does not vary but for rounding."""
    if np.ptp(pressure_N) <= ROUNDING * np.abs(pressure_N).max():
        return 0.0, 0.0
    k_N = chunk_N - chunk_N.mean()
    return float(pressure_N.var()), float(k_N @ pressure_N / (k_N @ k_N)) if k_N.any() else 0.0
