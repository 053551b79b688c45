"""Two real processes on the CPU: the same global batch gives one process's run, replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import PROJECT, Finished, differences

from chronomoe.generate import load_model

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processor cores"),
]

Train = Callable[..., Finished]


@pytest.fixture
def train_in_two(python: Callable[..., Any], tiny: list[str], tmp_path: Path) -> Callable[..., Finished]:
    """train_in_two(strategy, *overrides, into=name): `train.py` with two processes; asserts that it succeeds."""

    def train_in_two(strategy: str, *overrides: str, into: str = "two") -> Finished:
        process = start(python, tiny, strategy, *overrides, into=into)
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        return Finished(tmp_path / into)

    return train_in_two


def start(python: Callable[..., Any], tiny: list[str], strategy: str, *overrides: str, into: str) -> Any:
    where = (f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", f"hydra.run.dir={into}")
    return python(str(PROJECT / "train.py"), *tiny, *where, "trainer.log_every_steps=1", *overrides)


@pytest.mark.parametrize(("strategy", "accumulate"), [("ddp", 2), ("fsdp", 1)])
def test_two_processes_train_like_one_and_resume_bit_for_bit(
    train: Train, train_in_two: Train, strategy: str, accumulate: int
) -> None:
    overrides = (
        f"trainer.accumulate_grad_batches={accumulate}", "trainer.eval_every_steps=4", "trainer.keep_every_steps=3",
    )  # fmt: skip
    one, two = train(*overrides), train_in_two(strategy, *overrides, into="two")
    for column in ("train/loss", "val/loss"):
        np.testing.assert_allclose(two.column(column), one.column(column), atol=1e-4)
    np.testing.assert_allclose(two.column("train/grad_norm"), one.column("train/grad_norm"), rtol=1e-3)
    assert two.column("train/tokens") == one.column("train/tokens")
    np.testing.assert_array_equal(two.routing["tokens_per_expert"][:4], one.routing["tokens_per_expert"][:4])
    np.testing.assert_allclose(two.routing["bias"][:4], one.routing["bias"][:4], atol=1e-6)
    assert two.summary["num_params"] == one.summary["num_params"]

    model, _ = load_model(two.directory, "last")  # what generate reads
    for name, tensor in one.checkpoint()["state_dict"].items():
        torch.testing.assert_close(model.state_dict()[name.removeprefix("model.")], tensor, atol=2e-3, rtol=0)

    middle = two.directory / "checkpoints" / "step_00000003.ckpt"
    resumed = train_in_two(strategy, *overrides, f"ckpt_path={middle}", into="resumed")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert differences(two.checkpoint()[part], resumed.checkpoint()[part]) == []
    assert differences(two.controller, resumed.controller) == []
    assert resumed.rows == [row for row in two.rows if int(row["step"]) > 3]


def test_two_processes_in_bf16_train_near_one_and_resume_bit_for_bit(train: Train, train_in_two: Train) -> None:
    """Their gradients are summed in fp32, one process's stay in bf16."""
    overrides = ("trainer.precision=bf16-mixed", "trainer.eval_every_steps=4", "trainer.keep_every_steps=3")
    one, two = train(*overrides), train_in_two("ddp", *overrides, into="two")
    for column in ("train/loss", "val/loss"):
        np.testing.assert_allclose(two.column(column), one.column(column), atol=0.02)
    np.testing.assert_allclose(two.column("train/grad_norm")[0], one.column("train/grad_norm")[0], rtol=0.02)
    middle = two.directory / "checkpoints" / "step_00000003.ckpt"
    resumed = train_in_two("ddp", *overrides, f"ckpt_path={middle}", into="resumed")
    for part in ("state_dict", "optimizer_states"):
        assert differences(two.checkpoint()[part], resumed.checkpoint()[part]) == []
    assert resumed.rows == [row for row in two.rows if int(row["step"]) > 3]


def test_two_processes_stop_together_when_one_is_asked(
    python: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    process = start(python, tiny, "ddp", "trainer.max_steps=100000", into="run")
    wait_for_rows(process, tmp_path / "run" / "metrics.csv")
    process.send_signal(signal.SIGTERM)  # to the first process only
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    run = Finished(tmp_path / "run")
    assert run.summary["status"] == "stopped"
    assert run.checkpoint()["global_step"] == int(run.rows[-1]["step"])


def test_a_process_that_dies_ends_the_run_in_one_line(
    python: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    process = start(python, tiny, "ddp", "trainer.max_steps=100000", into="run")
    wait_for_rows(process, tmp_path / "run" / "metrics.csv")
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout
    (other,) = [int(line.split()[0]) for line in listed.splitlines() if "chronomoe.rank" in line]
    os.kill(other, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == f"error: process {other} of this run died with code -9"
    assert Finished(tmp_path / "run").summary["status"] == "failed"


def wait_for_rows(process: Any, metrics: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not (metrics.exists() and metrics.read_text().count("\n") > 10):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_jobs_of_a_multirun_each_get_their_own_processes(
    python: Callable[..., Any], tiny: list[str], train: Train, tmp_path: Path
) -> None:
    process = python(
        str(PROJECT / "train.py"), "-m", *tiny, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
        "optim.lr=1e30,2e-3", "optim.warmup_frac=0", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr  # the first job fails, and says so; the second runs all the same
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: train/")
    assert Finished(tmp_path / "sweep" / "0").summary["status"] == "failed"
    job, alone = Finished(tmp_path / "sweep" / "1"), train("optim.warmup_frac=0")
    assert job.summary["status"] == "done"
    np.testing.assert_allclose(job.column("train/loss"), alone.column("train/loss"), atol=1e-4)
