from __future__ import annotations

import pytest
from made_runs import made_run

from chronomoe.study.comparison import Arm, compare_runs
from chronomoe.study.effects_table import Cells, by_interval, cells
from chronomoe.study.measurements import METRICS


def arms_of(key: str, differences: list[float], specialisation: float = 0.0) -> tuple[Arm, Arm]:
    """An arm with these paired differences, and its baseline."""
    runs = []
    for seed, difference in enumerate(differences):
        for law, value in (("off", 0.0), ("pi", difference)):
            run = made_run(law, seed, {key: 5 + value})
            run.__dict__["evaluation"] = (
                {"trained": {"mean": {"domain_debiased": 0.1 + specialisation * (law == "pi")}}}
                if specialisation
                else {}
            )
            runs.append(run)
    baseline, arm = compare_runs(runs).arms
    return arm, baseline


def test_the_cells_of_an_arm():
    arm, baseline = arms_of("val_loss", [-0.01, -0.02, -0.03, 0.002])
    found = cells(METRICS["val_loss"], arm, baseline)
    assert found is not None
    assert found[:3] == ("4", "4.9855", "−0.0145")
    effect = arm.effects["val_loss"]
    assert found.interval == f"{effect.ci_low:.4f} to {effect.ci_high:.4f}".replace("-", "−")
    assert (found.wins, found.corrected_p, found.documented) == ("3/4", "0.25", "robust (3/4)")


def test_a_baseline_has_no_verdict():
    _, baseline = arms_of("val_loss", [-1.0])
    assert cells(METRICS["val_loss"], baseline, baseline) == Cells("1", "5.0000", "baseline", "", "", "", "", "")


def test_the_documented_rule_asks_for_specialisation_where_runs_were_evaluated():
    arm, baseline = arms_of("val_loss", [-0.01, -0.02, -0.03], specialisation=-0.05)
    found = cells(METRICS["val_loss"], arm, baseline)
    assert found is not None
    assert (found.wins, found.documented, found.verdict) == ("3/3", "not robust (0/3)", "better")


@pytest.mark.parametrize(
    ("key", "differences", "verdict"),
    [
        ("val_loss", [-1, -2, -3], "better"),
        ("val_loss", [1, 2, 3], "worse"),
        ("load_entropy", [1, 2, 3], "better"),
        ("load_entropy", [-1, -2, -3], "worse"),
        ("load_entropy", [-1, 2, 1], "not told apart"),
        ("val_loss", [-1, -2], "not told apart"),
    ],
)
def test_the_verdict_of_the_interval_knows_which_way_is_better(key: str, differences: list[float], verdict: str):
    arm, _ = arms_of(key, differences)
    assert by_interval(METRICS[key], arm.effects[key]) == verdict


def test_a_metric_without_a_pair_has_no_cells():
    arm, baseline = arms_of("val_loss", [1.0])
    assert cells(METRICS["max_vio_late"], arm, baseline) is None
