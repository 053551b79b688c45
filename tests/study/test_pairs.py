"""Pairing by seed, against the long way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chronomoe.settings import InputError
from chronomoe.study.pairs import bootstrap_interval, effect, name_arms
from chronomoe.study.run import Run


def run(law: str, seed: int, summary: dict[str, Any], **chrono: Any) -> Run:
    config = {"chrono": {"law": law, **chrono}, "seed": seed, "ckpt_path": None}
    return Run(directory=Path(f"{law}-{seed}"), config=config, summary=summary, metrics={}, routing=None)


def test_arms_are_named_by_what_sets_them_apart() -> None:
    runs = [run("off", 1, {}), run("pi", 1, {}, gain=0.1), run("pi", 1, {}, gain=0.2), run("pi", 2, {}, gain=0.1)]
    arms = name_arms(runs)
    assert set(arms) == {"off", "pi chrono.gain=0.1", "pi chrono.gain=0.2"}
    assert set(arms["pi chrono.gain=0.1"]) == {1, 2}


def test_a_plant_as_it_is_under_every_other_law_needs_no_name() -> None:
    runs = [run(law, seed, {}) for law in ("off", "off", "pi") for seed in (1,)]
    for number, weight in enumerate((0.0, 0.01, 0.0)):
        runs[number].config["router"] = {"load_balancing_weight": weight}
    assert set(name_arms(runs)) == {"off", "off router.load_balancing_weight=0.01", "pi"}


def test_the_record_a_control_plays_is_no_part_of_its_name() -> None:
    assert set(name_arms([run("sham", seed, {}, trace=f"runs/{seed}") for seed in (1, 2)])) == {"sham"}


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(InputError, match="same run twice"):
        name_arms([run("off", 1, {}), run("off", 1, {})])


def test_effect_is_the_mean_of_differences_within_seeds() -> None:
    values = {1: (3.0, 2.0), 2: (5.0, 5.5), 3: (9.0, 8.0)}
    arm = {seed: run("pi", seed, {"val_loss": mine}) for seed, (mine, _) in values.items()}
    baseline = {seed: run("off", seed, {"val_loss": theirs}) for seed, (_, theirs) in values.items()}
    baseline[4] = run("off", 4, {"val_loss": 1e9})  # a seed without a partner counts for nothing
    found = effect(arm, baseline, "val_loss")
    assert found is not None
    assert (found.n, found.wins) == (3, 1)
    assert found.mean_difference == pytest.approx((1.0 - 0.5 + 1.0) / 3)
    assert found.ci_low == pytest.approx(-0.5)
    assert found.ci_high == pytest.approx(1.0)


def test_a_missing_metric_is_no_number() -> None:
    arm = {1: run("pi", 1, {"val_loss": None})}
    assert effect(arm, arm, "val_loss") is None


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(0.3, 1.0, size=40))
        covered += low <= 0.3 <= high
    assert 86 <= covered <= 100
