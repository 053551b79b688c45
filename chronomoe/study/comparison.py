"""Runs compared: which arm each belongs to, what pairs it with the baseline, and what the pairs say.

An *arm* is a set of runs that differ in nothing but the seed. Arms are compared with the baseline of their *stratum*:
the runs that agree in every setting that `within` names. Within a stratum, arms may differ in the settings that `axis`
names and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chronomoe.study.pairs import Effect
from chronomoe.study.run import Run


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    """Unique within its stratum, such as `chrono.pressure_scale=0.1`."""
    stratum: str
    """`model=switch_2x8`; empty when all runs are in one."""
    settings: Mapping[str, Any]
    """Dotted key -> value of every setting in which arms differ (axis and within), for heat maps and filters."""
    runs: Mapping[int, Run]
    """seed -> run."""
    is_baseline: bool
    effects: Mapping[str, Effect]
    """Metric (key of `measurements.METRICS`) -> paired effect against the stratum's baseline. A metric that no pair has
    is missing. The baseline's own effects have a difference of zero."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    axis: Sequence[str]
    """Dotted keys, or prefixes of keys, in which arms may differ."""
    within: Sequence[str]
    baseline: str
    """Name of the arm that the others are held against, in every stratum."""
    arms: Sequence[Arm]
    """By stratum, the baseline first, then in the order the runs were given."""
    left_out: Sequence[Run]
    """Unfinished and failed runs."""
    shared: Mapping[str, Any]
    """Dotted key -> value of every setting that all runs have in common."""

    @property
    def strata(self) -> list[str]:
        return list(dict.fromkeys(arm.stratum for arm in self.arms))

    def baseline_of(self, stratum: str) -> Arm:
        return next(arm for arm in self.arms if arm.stratum == stratum and arm.is_baseline)
