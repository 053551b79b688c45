"""What a run is measured by, read from the files it left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import made_run

from chronomoe.study.measurements import METRICS, measure
from chronomoe.study.run import Run
from chronomoe.study.stability import loss_spikes


def test_a_finished_run_has_its_summary_and_its_stability(finished_run: Path) -> None:
    run = Run.load(finished_run)
    found = measure(run)
    assert found["val_loss"] == 4.270
    assert found["loss_spikes"] == loss_spikes(run.curve("train/loss").value)
    assert "specialisation" not in found
    assert "grad_norm_tail" not in found  # this run logged no gradient norm
    assert found.keys() <= METRICS.keys()


def test_specialisation_is_read_where_it_was_evaluated(make_run: Callable[..., Path]) -> None:
    directory = make_run()
    evaluation = {"trained": {"mean": {"domain_debiased": 0.3}}, "trained_minus_untrained": {"domain_debiased": 0.1}}
    (directory / "evaluation.json").write_text(json.dumps(evaluation))
    found = measure(Run.load(directory))
    assert (found["specialisation"], found["specialisation_gain"]) == (0.3, 0.1)


def test_a_dense_models_evaluation_has_no_specialisation(make_run: Callable[..., Path]) -> None:
    directory = make_run()
    (directory / "evaluation.json").write_text(json.dumps({"trained": {"loss": 4.0}, "trained_minus_untrained": {}}))
    assert "specialisation" not in measure(Run.load(directory))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "4.2"])
def test_what_is_no_finite_number_is_no_measurement(value: object) -> None:
    assert measure(made_run(summary={"val_loss": value})) == {}


def test_spikes_and_tail_come_from_the_logged_curves() -> None:
    step = np.arange(1.0, 101.0)
    columns = {"step": step, "train/loss": 5 - step / 100, "train/grad_norm": np.where(step > 97, 3.0, 1.0)}
    found = measure(made_run(metrics=columns))
    assert found["loss_spikes"] == 0
    assert found["grad_norm_tail"] > 2


def test_every_metric_says_what_it_is() -> None:
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.label
        assert metric.meaning.endswith(".")
        assert format(0.5, metric.form)
