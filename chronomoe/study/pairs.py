"""Runs paired by seed: the same initial weights and the same tokens in two arms that differ in their settings.

    difference_i = metric(arm, seed i) - metric(baseline, seed i);  95% interval by bootstrap over the pairs
A paired difference cancels what the seed alone does, which is usually more than what an arm does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from chronomoe.settings import InputError
from chronomoe.study.run import Run

METRICS = (
    "val_loss",
    "max_vio_early",
    "max_vio_late",
    "val_max_vio",
    "expert_information",
    "load_entropy",
    "dead_expert_frac",
    "tokens_per_sec",
)
UNNAMED = ("seed", "ckpt_path", "chrono.trace")
RESAMPLES = 10_000
HIGHER_IS_BETTER = ("expert_information", "load_entropy", "tokens_per_sec")
ENOUGH_PAIRS = 5


class Effect(NamedTuple):
    """One metric of one arm against the baseline."""

    n: int
    """Pairs."""
    mean: float
    """Of the arm."""
    mean_difference: float
    ci_low: float
    ci_high: float
    wins: int
    """Pairs in which the arm does better: higher where `HIGHER_IS_BETTER` says so, else lower."""
    p: float | None = None
    """Two-sided, of the exact sign-flip test over the pairs; never below 2 / 2^n."""
    corrected_p: float | None = None
    """The same after Holm's correction over all cells of the comparison that have this metric."""


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested config."""
    if not isinstance(node, Mapping):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}{name}.").items()}


def name_arms(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """arm -> seed -> run. An arm is named by its law and by what sets it apart from the others of that law, unless that
    is how the plant is under every other law (`off` beside `off router.load_balancing_weight=0.01`).

    Where a run's control was recorded (`chrono.trace`) is no part of a name, for every seed has its own.

    Raises InputError if two runs of one arm have one seed: they would count twice.
    """
    settings = [{k: v for k, v in flatten(run.config).items() if k not in UNNAMED} for run in runs]
    arms: dict[str, dict[int, Run]] = {}
    for run, mine in zip(runs, settings, strict=True):
        of_law = [other for other in settings if other["chrono.law"] == mine["chrono.law"]]
        elsewhere = [other for other in settings if other["chrono.law"] != mine["chrono.law"]]
        varied = (key for key in mine if any(other.get(key) != mine[key] for other in of_law))
        plant = {key for key in mine if not key.startswith("chrono.")}
        usual = {key for key in plant if elsewhere and all(other.get(key) == mine[key] for other in elsewhere)}
        apart = sorted(key for key in varied if key not in usual)
        name = " ".join([mine["chrono.law"], *(f"{key}={mine[key]}" for key in apart)])
        seed = run.config["seed"]
        if seed in arms.setdefault(name, {}):
            raise InputError(f"{run.directory} and {arms[name][seed].directory} are the same run twice: remove one")
        arms[name][seed] = run
    return arms


def effect(arm: Mapping[int, Run], baseline: Mapping[int, Run], metric: str) -> Effect | None:
    """The paired effect on one metric; None when no pair has it."""
    pairs = [
        (arm[seed].summary[metric], baseline[seed].summary[metric])
        for seed in sorted(arm.keys() & baseline.keys())
        if arm[seed].summary.get(metric) is not None and baseline[seed].summary.get(metric) is not None
    ]
    if not pairs:
        return None
    mine, theirs = np.array(pairs, dtype=np.float64).T
    difference = mine - theirs
    low, high = bootstrap_interval(difference)
    wins = difference > 0 if metric in HIGHER_IS_BETTER else difference < 0
    return Effect(len(pairs), float(mine.mean()), float(difference.mean()), low, high, int(wins.sum()))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of the mean, from `RESAMPLES` resamples with a fixed seed."""
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
