"""Fixtures of everything that sweeps: `python sweep.py` inside and outside this process, and what it leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_runs import PROJECT, Finished, Outcome

TIMED = ("wall_seconds", "tokens_per_sec", "git_revision")
"""Columns of results.csv that differ between two sweeps which did the same."""


class SweepFolder:
    """What a sweep left, read back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def results(self) -> list[dict[str, str]]:
        with (self.path / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def table(self) -> list[dict[str, str]]:
        """The results without what depends on the clock on the wall and on where the sweep lies."""
        return [
            {
                key: Path(value).name if key == "run_dir" else value
                for key, value in row.items()
                if key not in TIMED
            }
            for row in self.results
        ]  # fmt: skip

    def column(self, name: str) -> list[str]:
        return [row[name] for row in self.results]

    @property
    def runs(self) -> dict[str, Finished]:
        """Name of the point -> its run."""
        return {row["overrides"]: Finished(Path(row["run_dir"])) for row in self.results}

    def weights(self) -> dict[str, Any]:
        """Name of the point -> weights of its last checkpoint."""
        return {name: run.checkpoint()["state_dict"] for name, run in self.runs.items()}

    def jobs(self) -> list[str]:
        """What was submitted through processes: one submission a started job."""
        return sorted(path.name for path in (self.path / "jobs").glob("*_submitted.pkl"))


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Where the sweeps of the fixtures below lie."""
    return SweepFolder(tmp_path / "sweeps" / "s")


@pytest.fixture
def swept(tmp_path: Path, tiny: list[str]) -> list[str]:
    """Arguments of a sweep `s` of tiny runs in `folder`."""
    return [*tiny, "sweep.name=s", f"sweep.dir={tmp_path / 'sweeps'}"]


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What `guarded` and a sweep set for good in their process is undone."""
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def sweep(
    swept: list[str], clean_process: None, undrawn: None, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """sweep(*arguments): `python sweep.py` of tiny runs, one after another in this process, with those arguments."""
    from hydra.core.global_hydra import GlobalHydra

    from chronomoe.entry import guarded
    from chronomoe.sweep.command import main

    def sweep(*arguments: str) -> Outcome:
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = 0
        try:
            guarded(lambda: main([*swept, "launcher=debug", *arguments]))
        except SystemExit as left:
            code = int(left.code or 0)
        return Outcome(code, *capfd.readouterr())

    return sweep


@pytest.fixture
def start(python: Callable[..., subprocess.Popen[str]], swept: list[str]) -> Iterator[Callable[..., Any]]:
    """start(*arguments): a real `python sweep.py` of tiny runs, in a process group of its own, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        options.setdefault("start_new_session", True)
        process = python(str(PROJECT / "sweep.py"), *swept, *arguments, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = 90.0) -> Outcome:
    """Wait for a process to end by itself."""
    stdout, stderr = process.communicate(timeout=seconds)
    return Outcome(process.returncode, stdout, stderr)


def wait_until(true: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 60.0) -> None:
    """Until a condition holds; fails when the process ends before, or time is up."""
    deadline = time.monotonic() + seconds
    while not true():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
