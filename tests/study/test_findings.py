from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chronomoe.chrono.coherence import MEASURES
from chronomoe.study import findings
from chronomoe.study.run import Run

MakeRun = Callable[..., Path]


def test_identity_says_which_run_it_is(finished_run: Path):
    identity = findings.identity(Run.load(finished_run))
    assert identity == "law chronovisor  ·  2 layers × 8 experts, top-2  ·  data stdlib  ·  seed 7"


def test_a_dense_model_is_called_dense(make_run: MakeRun):
    assert findings.shape(Run.load(make_run(dense=True))) == "2 layers, dense"


def test_usage_speaks_of_the_busiest_and_the_least_used_expert(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    tokens = run.routing.tokens_per_expert
    start, end = tokens[:15].sum(axis=0), tokens[-15:].sum(axis=0)  # 5% of 300 records
    share = [part / part.sum(axis=1, keepdims=True) * 8 for part in (start, end)]
    assert f"{share[0].max():.2f} → {share[1].max():.2f}" in findings.usage(run)
    assert f"{share[0].min():.2f} → {share[1].min():.2f}" in findings.usage(run)
    assert f"{share[0][1].max():.2f} → {share[1][1].max():.2f}" in findings.usage(run, layer=1)


def test_control_is_said_not_to_act_only_where_it_never_did(make_run: MakeRun):
    directory = make_run(law="off")
    assert findings.control(Run.load(directory)).startswith("No control acted")
    arrays = dict(np.load(directory / "routing.npz"))
    arrays["lens"][3, 0, 0] = 0.5  # acted once, and was back at 0 by the end
    np.savez(directory / "routing.npz", **arrays)
    assert findings.control(Run.load(directory)).startswith("Furthest from 0 at the end: lens 0.00")


def test_the_log_temperature_is_shown_only_where_it_was_used(make_run: MakeRun):
    directory = make_run()
    run = Run.load(directory)
    assert run.routing is not None
    assert "log_temperature" not in findings.shown_controls(run.routing)
    run.routing.controls["log_temperature"][5, 1, 2] = 0.1
    assert "log_temperature" in findings.shown_controls(run.routing)


def test_zeros_of_a_law_without_coherence_are_not_taken_for_a_reading(make_run: MakeRun):
    run = Run.load(make_run(law="off"))
    assert findings.coherence_by_layer(run) == []
    assert findings.coherence(run) == "No coherence was recorded"


@pytest.mark.parametrize("measure", MEASURES)
def test_every_coherence_measure_has_its_scale_explained(measure: str):
    assert measure in findings.COHERENCE_SCALES


def test_findings_of_an_empty_run_say_so(make_run: MakeRun):
    run = Run.load(make_run(steps=0, error="out of memory"))
    for finding in (findings.loss, findings.coherence, findings.max_vio, findings.usage, findings.control):
        assert "was recorded" in finding(run)
