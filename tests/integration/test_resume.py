"""Resuming: a run that was stopped and goes on is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import PROJECT, Finished, differences

from chronomoe.settings import InputError, Stopped
from chronomoe.training import autotune
from chronomoe.training.autotune import Kernels
from chronomoe.training.module import LanguageModule
from chronomoe.training.telemetry import Telemetry

LONG = (
    "trainer.max_steps=20",
    "trainer.eval_every_steps=5",
    "chrono.clocks.macro_period=4",
    "trainer.checkpoint_every_steps=7",
)


def assert_same_run(one: Finished, other: Finished) -> None:
    """Weights, optimizer, schedule, every controller tensor, metrics, routing record and summary are equal."""
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    ours, theirs = one.checkpoint(), other.checkpoint()
    assert differences({part: ours[part] for part in parts}, {part: theirs[part] for part in parts}) == []
    assert differences(one.controller, other.controller) == []
    assert one.rows == other.rows
    assert one.routing.keys() == other.routing.keys()
    for name, array in one.routing.items():
        np.testing.assert_array_equal(array, other.routing[name], err_msg=name)
    timed = {"wall_seconds", "tokens_per_sec"}
    a, b = one.summary, other.summary
    assert {key: a[key] for key in a if key not in timed} == {key: b[key] for key in b if key not in timed}
    assert differences(one.checkpoint("best")["state_dict"], other.checkpoint("best")["state_dict"]) == []


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """interrupt(step): send this process SIGINT, once, while optimizer step `step` is being logged."""

    def interrupt(step: int) -> None:
        original = Telemetry._log_row

        def log_row(self: Telemetry, trainer: Any, module: Any, now: int) -> None:
            original(self, trainer, module, now)
            if now == step:
                monkeypatch.setattr(Telemetry, "_log_row", original)
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Telemetry, "_log_row", log_row)

    return interrupt


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop_after", [3, 5, 10, 12])  # inside, at and across periods of the clocks, at an evaluation
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    train: Callable[..., Finished],
    interrupt: Callable[[int], None],
    tmp_path: Path,
    stop_after: int,
    accumulate: int,
    precision: str,
) -> None:
    overrides = (*LONG, f"trainer.accumulate_grad_batches={accumulate}", f"trainer.precision={precision}")
    whole = train(*overrides, into="whole")
    interrupt(stop_after)
    with pytest.raises(Stopped):
        train(*overrides, into="stopped")
    saved = torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == stop_after
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert_same_run(whole, resumed)


def test_a_resumed_run_keeps_its_kernels_whatever_the_machine_would_choose_now(
    train: Callable[..., Finished],
    interrupt: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Kernels round differently, so another choice would be another run."""
    overrides = (*LONG, f"data.cache_dir={tmp_path / 'cache'}")
    chosen = Kernels(library="torch", attention="sdpa")
    monkeypatch.setattr(autotune, "measure", lambda *_: chosen)
    whole = train(*overrides, into="whole")
    interrupt(5)
    with pytest.raises(Stopped):
        train(*overrides, into="stopped")
    monkeypatch.setattr(autotune, "measure", lambda *_: Kernels(library="onednn", attention="products"))
    (tmp_path / "cache" / "kernels.json").unlink()
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert Kernels(**resumed.checkpoint()["kernels"]) == chosen
    assert_same_run(whole, resumed)


@pytest.mark.parametrize("temperature", ["documented", "structural"])
def test_every_state_of_the_controller_survives_a_resume(
    train: Callable[..., Finished], interrupt: Callable[[int], None], temperature: str
) -> None:
    law = ("chrono.coherence=stability", "chrono.schedule=cosine", f"chrono/temperature={temperature}")
    whole = train(*LONG, *law, into="whole")
    interrupt(6)
    with pytest.raises(Stopped):
        train(*LONG, *law, into="stopped")
    assert_same_run(whole, train(*LONG, *law, "ckpt_path=last", into="stopped"))


def test_a_signal_inside_an_accumulation_window_stops_the_run_at_its_end(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = (*LONG, "trainer.accumulate_grad_batches=4")
    whole = train(*overrides, into="whole")
    original = LanguageModule.training_step

    def training_step(self: LanguageModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 4 * 2 + 1:  # the second of the third step's four micro-batches
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModule, "training_step", training_step)
        with pytest.raises(Stopped):
            train(*overrides, into="stopped")
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    assert_same_run(whole, train(*overrides, "ckpt_path=last", into="stopped"))


def test_a_stopped_run_says_so_in_its_summary(
    train: Callable[..., Finished], interrupt: Callable[[int], None], tmp_path: Path
) -> None:
    interrupt(3)
    with pytest.raises(Stopped):
        train(*LONG)
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert '"status": "stopped"' in summary
    assert "ckpt_path=last" in summary


def test_a_checkpoint_by_path_starts_a_new_directory_from_its_step(train: Callable[..., Finished]) -> None:
    whole = train(*LONG, "trainer.keep_every_steps=10", into="whole")
    kept = whole.directory / "checkpoints" / "step_00000010.ckpt"
    branch = train(*LONG, f"ckpt_path={kept}", into="branch")
    assert differences(whole.checkpoint()["state_dict"], branch.checkpoint()["state_dict"]) == []
    assert branch.rows == [row for row in whole.rows if int(row["step"]) > 10]


def test_last_without_a_directory_is_the_newest_unfinished_run_of_the_same_config(
    train: Callable[..., Finished], configure: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chronomoe.run import resume_from

    monkeypatch.chdir(tmp_path)
    train("trainer.checkpoint_every_steps=4", into="outputs/day/first")
    train("trainer.checkpoint_every_steps=4", into="outputs/day/second")
    train("trainer.checkpoint_every_steps=4", into="outputs/day/finished")
    train("seed=1", into="outputs/day/other_config")
    for name in ("first", "second"):
        summary = tmp_path / "outputs" / "day" / name / "summary.json"
        summary.write_text(summary.read_text().replace('"done"', '"stopped"'))
    resume = resume_from(configure("trainer.checkpoint_every_steps=4", "ckpt_path=last"), None)
    assert resume is not None
    assert resume.run_dir == Path("outputs/day/second")
    with pytest.raises(InputError, match=r"ckpt_path=last: no checkpoints/last.ckpt"):
        resume_from(configure("seed=2", "ckpt_path=last"), None)


@pytest.mark.slow
def test_a_terminated_process_exits_130_and_resumes_bit_for_bit(
    train: Callable[..., Finished], python: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    overrides = ("trainer.max_steps=400", "trainer.eval_every_steps=100")
    process = python(str(PROJECT / "train.py"), *tiny, *overrides, "hydra.run.dir=stopped")
    metrics = tmp_path / "stopped" / "metrics.csv"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 20, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert '"status": "stopped"' in (tmp_path / "stopped" / "summary.json").read_text()
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert_same_run(train(*overrides, into="whole"), resumed)


KILL_AT_18 = """
import os, signal, sys
from pathlib import Path
from chronomoe.run import run
from chronomoe.config import load_config
from chronomoe.training.telemetry import Telemetry

original = Telemetry._log_row
def log_row(self, trainer, module, step):
    original(self, trainer, module, step)
    if step == 18:
        os.kill(os.getpid(), signal.SIGKILL)
Telemetry._log_row = log_row
run(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_after_a_kill_the_run_goes_on_from_its_last_checkpoint_and_replaces_what_came_after(
    train: Callable[..., Finished], python: Callable[..., Any], tmp_path: Path
) -> None:
    whole = train(*LONG, into="whole")
    process = python("-c", KILL_AT_18, "whole/config.yaml", "killed")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "metrics.csv").read_text().count("\n18,") == 1
    assert torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 14
    assert_same_run(whole, train(*LONG, "ckpt_path=last", into="killed"))


def wait_until(true: Callable[[], bool], process: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_deterministic_algorithms_a_run_on_a_gpu_resumes_bit_for_bit(
    train: Callable[..., Finished],
    interrupt: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    overrides = (*LONG, "trainer=gpu", f"trainer.precision={precision}", "trainer.log_every_steps=1")
    torch.use_deterministic_algorithms(True)
    try:
        whole = train(*overrides, into="whole")
        interrupt(5)
        with pytest.raises(Stopped):
            train(*overrides, into="stopped")
        assert_same_run(whole, train(*overrides, "ckpt_path=last", into="stopped"))
    finally:
        torch.use_deterministic_algorithms(False)
