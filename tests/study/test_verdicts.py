"""The honest and the documented verdict on an arm's loss."""

from __future__ import annotations

import itertools

import pytest
from made_runs import made_run

from chronomoe.study.comparison import compare_runs
from chronomoe.study.verdicts import Verdict, of_share, robust_by_chance, verdict


def judged(differences: list[float], specialisation: list[float] | None = None) -> Verdict | None:
    runs = []
    for seed, difference in enumerate(differences):
        runs += [made_run("off", seed, {"val_loss": 5.0}), made_run("pi", seed, {"val_loss": 5.0 + difference})]
        for run, value in zip(runs[-2:], (0.0, specialisation[seed] if specialisation else 0.0), strict=True):
            evaluation = {"trained": {"mean": {"domain_debiased": value}}} if specialisation else {}
            run.__dict__["evaluation"] = evaluation
    baseline, arm = compare_runs(runs).arms
    return verdict(arm, baseline)


@pytest.mark.parametrize(
    ("differences", "interval", "documented"),
    [
        ([-1, -1.1, -0.9, -1.2, -1], "better", "robust"),
        ([1, 1.1, 0.9, 1.2, 1], "worse", "not robust"),
        ([-0.1, -0.2, 3], "not told apart", "robust"),
        ([-0.1, 1, 3], "not told apart", "partial"),
        ([0, 0, 0], "not told apart", "not robust"),
        ([-1, -1], "not told apart", "robust"),
    ],
)
def test_both_verdicts(differences: list[float], interval: str, documented: str) -> None:
    said = judged(differences)
    assert said is not None
    assert (said.interval, said.documented, said.pareto) == (interval, documented, False)


def test_with_specialisation_both_must_be_better() -> None:
    said = judged([-1, -1, -1], [0.1, 0.2, -0.1])
    assert said is not None
    assert (said.better, said.documented, said.pareto) == (2, "robust", True)
    said = judged([-1, -1, -1], [-0.1, -0.2, 0.1])
    assert said is not None
    assert (said.better, said.documented, said.interval) == (1, "partial", "better")


def test_without_a_pair_nothing_is_said() -> None:
    baseline, arm = compare_runs([made_run("off", 1, {"val_loss": 1}), made_run("pi", 2, {"val_loss": 1})]).arms
    assert verdict(arm, baseline) is None


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 9])
def test_chance_is_that_of_coins(pairs: int) -> None:
    throws = list(itertools.product((0, 1), repeat=pairs))
    robust = sum(of_share(sum(throw) / pairs) == "robust" for throw in throws) / len(throws)
    assert robust_by_chance(pairs, 0.5) == pytest.approx(robust)
    assert robust_by_chance(3, 0.5) == 0.5
