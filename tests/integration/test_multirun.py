"""Multirun: every point is the run it would be alone, and one that fails does not take the others with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training_runs import Finished, Outcome, differences

Command = Callable[..., Outcome]


def test_the_second_job_equals_the_same_point_run_alone(
    command: Command, tiny: list[str], train: Callable[..., Finished], tmp_path: Path
) -> None:
    outcome = command("-m", *tiny, "chrono.pressure_scale=0.1,0.5", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.stderr
    for job, scale in enumerate((0.1, 0.5)):
        point, alone = Finished(tmp_path / "sweep" / str(job)), train(f"chrono.pressure_scale={scale}", into=f"{scale}")
        assert point.summary["status"] == "done"
        assert point.rows == alone.rows
        assert differences(point.checkpoint()["state_dict"], alone.checkpoint()["state_dict"]) == []
        assert differences(point.controller, alone.controller) == []


def test_a_point_that_fails_while_running_does_not_stop_the_next(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    outcome = command("-m", *tiny, "optim.lr=1e30,2e-3", "optim.warmup_frac=0", "hydra.sweep.dir=sweep")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.stderr
    statuses = [Finished(tmp_path / "sweep" / job).summary["status"] for job in ("0", "1")]
    assert statuses == ["failed", "done"]


def test_a_wrong_point_refuses_the_whole_multirun_before_anything_is_written(
    command: Command, tiny: list[str], tmp_path: Path
) -> None:
    outcome = command("-m", *tiny, "router.top_k=2,9", "hydra.sweep.dir=sweep")
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert "router.top_k=9" in line
    assert list(tmp_path.iterdir()) == []
