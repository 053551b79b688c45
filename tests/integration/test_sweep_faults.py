"""Sweeps whose workers, parents, disks and folders are taken from them: nothing finished is lost, every fault is a
clear line, and the final table is that of an undisturbed sweep."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from sweep_runs import SweepFolder
from training_runs import Outcome, differences

from chronomoe.sweep.state import is_locked

Start = Callable[..., subprocess.Popen[str]]
Sweep = Callable[..., Outcome]
GRID = ("chrono.gamma=0,0.2", "seed=1,2", "trainer.max_steps=400", "trainer.checkpoint_every_steps=20")
LOCAL = ("launcher=local", "launcher.jobs=2")


def assert_same(one: SweepFolder, other: SweepFolder) -> None:
    """The tables, without what depends on the clock, and every weight."""
    assert one.table == other.table
    assert differences(one.weights(), other.weights()) == []


def steps(run_dir: Path) -> int:
    """Logged so far."""
    metrics = run_dir / "metrics.csv"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def running(folder: SweepFolder) -> list[Path]:
    return [run_dir for run_dir in (folder.path / "runs").glob("*") if is_locked(run_dir)]


def workers(folder: SweepFolder) -> list[psutil.Process]:
    """The processes that train this sweep's points."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "submitit.core._submit" in line and str(folder.path) in line[-1]:
            found.append(process)
    return found


@pytest.fixture
def undisturbed(sweep: Sweep, folder: SweepFolder) -> Callable[..., SweepFolder]:
    """undisturbed(*arguments): the same sweep, one point after another in this process."""

    def undisturbed(*arguments: str) -> SweepFolder:
        assert sweep(*arguments, "sweep.name=undisturbed").code == 0
        return SweepFolder(folder.path.with_name("undisturbed"))

    return undisturbed
