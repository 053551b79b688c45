from __future__ import annotations

import pytest
from made_runs import made_run

from chronomoe.study.comparison import Arm, compare_runs
from chronomoe.study.specialisation import read_specialisation


def evaluated(*evaluations: dict) -> Arm:
    runs = [made_run("off", seed) for seed in range(len(evaluations))]
    for run, evaluation in zip(runs, evaluations, strict=True):
        run.__dict__["evaluation"] = evaluation
    return compare_runs(runs).arms[0]


def reading(value: float, *p_values: float | None) -> dict:
    return {"mean": {"domain_debiased": value}, "layers": [{"domain_p_value": p} for p in p_values]}


def test_trained_untrained_and_references_over_seeds():
    references = {"random": {"domain_debiased": 0.0}, "oracle": {"domain_debiased": 0.8}}
    found = read_specialisation(
        evaluated(
            {"trained": reading(0.2, 0.001, 0.2), "untrained": reading(0.05), "references": references},
            {"trained": reading(0.4, 0.001, None), "untrained": reading(0.07), "references": None},
            {},
        )
    )
    assert found is not None
    assert found.trained.mean == pytest.approx(0.3)
    assert 0.2 <= found.trained.low < 0.3 < found.trained.high <= 0.4
    assert (found.untrained, found.floor, found.ceiling) == (pytest.approx(0.06), 0.0, 0.8)
    assert (found.beyond_chance, found.layers) == (2, 3)


@pytest.mark.parametrize(
    "evaluation", [{}, {"trained": {"loss": 3.0}}, {"trained": {"mean": {"domain_debiased": None}}}]
)
def test_a_run_that_was_not_evaluated_on_domains_has_none(evaluation: dict):
    assert read_specialisation(evaluated(evaluation)) is None
