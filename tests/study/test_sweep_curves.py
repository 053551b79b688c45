from __future__ import annotations

import numpy as np
from made_runs import made_run

from chronomoe.study.bands import learning_curve, mean_band, token_grid
from chronomoe.study.comparison import compare_runs
from chronomoe.study.run import Run
from chronomoe.study.shown_arms import show_arms
from chronomoe.study.sweep_curves import CURVE_POINTS, DIFFERENCE, KINDS, read_bands

RNG = np.random.default_rng(0)
VALIDATION, TRAINING, COHERENCE, MAX_VIO = KINDS


def a_run(law: str, seed: int, steps: int = 200, **columns: np.ndarray) -> Run:
    step = np.arange(1, steps + 1, dtype=float)
    metrics = {"step": step, "train/tokens": 10 * step, "train/loss": 5 - step / 100 + RNG.normal(size=steps) / 50}
    metrics["val/loss"] = np.where(step % 20 == 0, metrics["train/loss"] + seed, np.nan)
    return made_run(law, seed, {"val_loss": 1.0}, metrics=metrics | columns)


def bands_of(*runs: Run):
    comparison = compare_runs(runs)
    shown = show_arms(comparison)
    return shown, read_bands(shown, {"": comparison.baseline_of("")})


def test_validation_loss_is_banded_over_the_seeds_at_equal_tokens():
    shown, bands = bands_of(*(a_run(law, seed) for law in ("off", "pi") for seed in range(3)))
    curves = [learning_curve(run) for run in shown[1].arm.runs.values()]
    expected = mean_band(curves, token_grid(curves, 120))
    for mine, theirs in zip(bands[VALIDATION][1], expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_difference_is_paired_and_the_baseline_has_none():
    runs = [a_run("off", seed) for seed in range(3)]
    twins = [made_run("pi", run.config["seed"], {"val_loss": 1.0}, metrics=run.metrics) for run in runs]
    _, bands = bands_of(*runs, *twins)
    assert set(bands[DIFFERENCE]) == {1}
    assert not bands[DIFFERENCE][1].mean.any()


def test_curves_that_no_arm_has_are_missing_and_seeds_without_one_are_left_out():
    coherence = RNG.normal(size=200)
    _, bands = bands_of(a_run("off", 1), a_run("pi", 1, **{"chrono/coherence": coherence}), a_run("pi", 2))
    assert MAX_VIO not in bands
    assert {arm: band.seeds for arm, band in bands[COHERENCE].items()} == {1: 1}


def test_many_arms_share_the_points():
    _, bands = bands_of(*(a_run(law, 1, steps=400) for law in ("off", *(f"law{number}" for number in range(499)))))
    points = sum(len(band.tokens) for band in bands[TRAINING].values())
    assert len(bands[TRAINING]) == 500
    assert points <= CURVE_POINTS
