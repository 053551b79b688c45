"""Runs in arms and strata, with effects, corrected and uncorrected."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import made_run

from chronomoe.settings import InputError
from chronomoe.study.comparison import compare_runs
from chronomoe.study.comparison_table import tables
from chronomoe.study.run import Run
from chronomoe.study.significance import holm

RNG = np.random.default_rng(0)


def grid(seeds: int = 6, laws: tuple[str, ...] = ("pi", "off", "bip"), **settings: object) -> list[Run]:
    """`pi` is better by 1 in every seed, every other law by chance alone."""
    return [
        made_run(law, seed, {"val_loss": 5 + seed / 10 - (law == "pi") + 0.1 * RNG.normal()}, **settings)
        for seed in range(seeds)
        for law in laws
    ]


def test_every_arm_is_held_against_the_baseline_and_corrected_for_all_arms() -> None:
    comparison = compare_runs(grid())
    assert [arm.name for arm in comparison.arms] == ["off", "pi", "bip"]
    baseline, better, chance = comparison.arms
    assert (comparison.baseline, baseline.is_baseline, better.is_baseline) == ("off", True, False)
    found = better.effects["val_loss"]
    assert found.n == found.wins == 6
    assert found.mean_difference == pytest.approx(-1, abs=0.2)
    assert (found.p, found.corrected_p) == (pytest.approx(2 / 64), pytest.approx(4 / 64))
    expected = holm({"pi": found.p, "bip": chance.effects["val_loss"].p})
    assert chance.effects["val_loss"].corrected_p == expected["bip"]
    own = baseline.effects["val_loss"]
    assert (own.mean_difference, own.ci_low, own.ci_high, own.p, own.corrected_p) == (0, 0, 0, None, None)
    assert better.values["val_loss"].keys() == set(range(6))
    assert better.settings == {"chrono.law": "pi"}
    assert "chrono.law" not in comparison.shared


def test_strata_are_compared_inside_themselves_and_corrected_together() -> None:
    small, large = (grid(model__dim=dim) for dim in (1, 2))
    for run in large:
        run.summary["val_loss"] -= 100
    comparison = compare_runs(small + large, within=["model"])
    assert comparison.strata == ["model.dim=1", "model.dim=2"]
    better = [arm for arm in comparison.arms if arm.name == "pi"]
    assert [arm.effects["val_loss"].mean_difference for arm in better] == pytest.approx([-1, -1], abs=0.2)
    assert better[0].effects["val_loss"].corrected_p == pytest.approx(4 * 2 / 64)
    assert comparison.baseline_of("model.dim=2").effects["val_loss"].mean < 0
    assert better[1].settings == {"chrono.law": "pi", "model.dim": 2}


def test_without_within_the_same_runs_are_refused() -> None:
    with pytest.raises(InputError, match=r"axis=chrono,model\.dim"):
        compare_runs([*grid(model__dim=1), *grid(model__dim=2)])


def test_data_must_be_the_same_unless_it_is_the_axis() -> None:
    runs = [*grid(data__source="a"), *grid(data__source="b", laws=("pi",))]
    with pytest.raises(InputError, match=r"data\.source"):
        compare_runs(runs)
    names = [arm.name for arm in compare_runs(runs, axis=["chrono", "data"]).arms]
    assert names == ["off", "pi", "bip", "pi data.source=b"]


def test_only_seeds_that_both_have_are_pairs() -> None:
    runs = [run for run in grid() if (run.config["chrono"]["law"], run.config["seed"]) not in {("pi", 2), ("off", 3)}]
    found = {arm.name: arm.effects["val_loss"].n for arm in compare_runs(runs).arms}
    assert found == {"off": 5, "pi": 4, "bip": 5}


def test_an_arm_without_a_pair_has_no_effect() -> None:
    comparison = compare_runs([made_run("off", 1, {"val_loss": 1}), made_run("pi", 2, {"val_loss": 1})])
    assert [dict(arm.effects) for arm in comparison.arms[1:]] == [{}]


def test_unfinished_runs_are_left_out() -> None:
    runs = grid()
    runs[0].summary["status"] = "failed"
    comparison = compare_runs(runs)
    assert list(comparison.left_out) == [runs[0]]
    for run in runs:
        run.summary["status"] = "stopped"
    with pytest.raises(InputError, match="none of the 18 runs is finished"):
        compare_runs(runs)


def test_a_stratum_without_its_baseline_is_left_out_and_said() -> None:
    comparison = compare_runs([*grid(model__dim=1), *grid(model__dim=2, laws=("pi",))], within=["model"])
    assert comparison.strata == ["model.dim=1"]
    assert any("model.dim=2 has no finished run of off" in note for note in comparison.notes)


def test_the_same_settings_under_two_names_are_pointed_out() -> None:
    points = ("chrono=off", "chrono=pi", "chrono.gain=1")
    runs = [
        made_run("off" if words == "chrono=off" else "pi", 1, {"val_loss": 1}, point=f"{words} seed=1")
        for words in points
    ]
    assert compare_runs(runs).notes == ["chrono=pi and chrono.gain=1 are the same settings under 2 names"]


def test_runs_of_two_versions_are_pointed_out() -> None:
    runs = grid()
    for run in runs:
        run.summary |= {"git_revision": "a" * 40, "versions": {"torch": "2.13"}}
    assert compare_runs(runs).notes == []
    runs[3].summary["git_revision"] = "b" * 40 + "+"
    said = f"the runs come from 2 versions: {'a' * 9} with torch 2.13, {'b' * 9}+ with torch 2.13"
    assert compare_runs(runs).notes == [said]


def test_tables_hold_every_metric_and_fit_a_terminal() -> None:
    runs = grid()
    for run in runs:
        run.summary |= {"max_vio_late": 2.0, "load_entropy": 0.99, "tokens_per_sec": 21_000.0}
    printed = tables(compare_runs(runs))
    assert printed.count("| wins") == 4
    assert max(map(len, printed.splitlines())) <= 120
    line = next(line for line in printed.splitlines() if line.startswith("| pi"))
    assert " 6 " in line
    assert " 6/6 " in line
    assert " 0.031 " in line
    assert " 0.062 " in line
