"""Fixtures of everything that sweeps: `python sweep.py` inside and outside this process, and what it leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob
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
        return sorted(path.name for path in (self.path / "jobs").glob("*/*_submitted.pkl"))


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """Where the sweeps of the fixtures below lie."""
    return SweepFolder(tmp_path / "sweeps" / "s")


@pytest.fixture
def tiny_sweep(tmp_path: Path, tiny: list[str]) -> list[str]:
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
    tiny_sweep: list[str], clean_process: None, undrawn: None, capfd: pytest.CaptureFixture[str]
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
            guarded(lambda: main([*tiny_sweep, "launcher=debug", *arguments]))
        except SystemExit as left:
            code = int(left.code or 0)
        return Outcome(code, *capfd.readouterr())

    return sweep


UNDRAWN = """
import importlib.util, sys

LEFT_OUT = {"chronomoe.study.figures": "draw_run", "chronomoe.study.report": "write_report"}

class Undrawn:
    def find_spec(self, name, path, target=None):
        if name not in LEFT_OUT:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            setattr(module, LEFT_OUT[name], lambda run: None)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Undrawn())
"""
"""What every process of these sweeps begins with: it leaves out figures and report, as `undrawn` does here."""


@pytest.fixture
def undrawn_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> str:
    """The PYTHONPATH of processes that find the project and draw nothing, set for those that this process starts."""
    (tmp_path / "undrawn").mkdir()
    (tmp_path / "undrawn" / "sitecustomize.py").write_text(UNDRAWN)
    path = f"{tmp_path / 'undrawn'}{os.pathsep}{PROJECT}"
    monkeypatch.setenv("PYTHONPATH", path)
    return path


@pytest.fixture
def start(tiny_sweep: list[str], undrawn_processes: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """start(*arguments): a real `python sweep.py` of tiny runs, in a process group of its own, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PROJECT / "sweep.py"), *tiny_sweep, *arguments]
        environment = {**os.environ, "PYTHONPATH": undrawn_processes, "OMP_NUM_THREADS": "1"}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
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


FAKE_SLURM = {
    "sbatch": r"""#!/bin/bash
# Accept a batch script and run it in the background, as a job that may be queued again.
if [ -e "$FAKE_SLURM/refuse" ]; then cat "$FAKE_SLURM/refuse" >&2; exit 1; fi
id=$((100 + $(ls "$FAKE_SLURM" | grep -c '\.sh$')))
cp "$1" "$FAKE_SLURM/$id.sh"
asked() { sed -n "s/^#SBATCH --$1=//p" "$FAKE_SLURM/$id.sh"; }
export SLURM_JOB_ID=$id SLURM_JOB_NAME=$(asked job-name) SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1
export SLURM_NTASKS=$(asked ntasks-per-node) SLURM_NTASKS_PER_NODE=$(asked ntasks-per-node)
export SLURM_JOB_NODELIST=localhost SLURM_NODEID=0
if [ -e "$FAKE_SLURM/busy" ]; then
    echo PENDING > "$FAKE_SLURM/$id.state"
else
    echo RUNNING > "$FAKE_SLURM/$id.state"
    setsid bash -c '
        echo $$ > "$FAKE_SLURM/$SLURM_JOB_ID.session"
        while bash "$FAKE_SLURM/$SLURM_JOB_ID.sh"; rm "$FAKE_SLURM/$SLURM_JOB_ID.requeue" 2>/dev/null; do :; done
        if grep -q COMPLETING "$FAKE_SLURM/$SLURM_JOB_ID.state"; then end=CANCELLED; else end=COMPLETED; fi
        echo $end > "$FAKE_SLURM/$SLURM_JOB_ID.state"
    ' < /dev/null > "$FAKE_SLURM/$id.out" 2>&1 &
fi
echo "Submitted batch job $id"
""",
    "srun": r"""#!/bin/bash
# The tasks of a job, each with its rank.
while [[ $1 == --* ]]; do
    case $1 in
        --output) out=$2; shift 2;;
        --error) err=$2; shift 2;;
        *) shift;;
    esac
done
: > "$FAKE_SLURM/$SLURM_JOB_ID.pids"
for ((task = 0; task < SLURM_NTASKS; task++)); do
    o=${out//%j/$SLURM_JOB_ID}; e=${err//%j/$SLURM_JOB_ID}
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >> "${o//%t/$task}" 2>> "${e//%t/$task}" &
    echo $! >> "$FAKE_SLURM/$SLURM_JOB_ID.pids"
done
wait
""",
    "scancel": r"""#!/bin/bash
echo "$@" >> "$FAKE_SLURM/scancel.log"
if [ -e "$FAKE_SLURM/$1.pids" ]; then end=COMPLETING; else end=CANCELLED; fi
echo $end > "$FAKE_SLURM/$1.state"
[ -e "$FAKE_SLURM/$1.pids" ] && kill -TERM $(cat "$FAKE_SLURM/$1.pids")
exit 0
""",
    "sacct": r"""#!/bin/bash
echo "JobID|State|NodeList"
for id in "$@"; do [ -e "$FAKE_SLURM/$id.state" ] && echo "$id|$(cat "$FAKE_SLURM/$id.state")|localhost"; done
exit 0
""",
    "scontrol": r"""#!/bin/bash
touch "$FAKE_SLURM/$2.$1"
""",
}


class FakeSlurm:
    """The scripts on the PATH, and what they keep: `<job>.sh`, `.state`, `.pids` of its tasks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scripts(self) -> list[str]:
        """Of every job that was submitted."""
        return [path.read_text() for path in sorted(self.path.glob("*.sh"))]

    def directives(self, job: int = 0) -> dict[str, str]:
        """`#SBATCH --key=value` of a job."""
        lines = [line.removeprefix("#SBATCH --") for line in self.scripts()[job].splitlines() if "#SBATCH" in line]
        return {key: value.strip("'") for key, _, value in (line.partition("=") for line in lines)}

    def pids(self, job: int = 100) -> list[int]:
        path = self.path / f"{job}.pids"
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn_processes: str) -> Iterator[FakeSlurm]:
    """A SLURM of shell scripts on the PATH, which runs its jobs here and at once."""
    programs, state = tmp_path / "slurm-bin", tmp_path / "slurm"
    programs.mkdir()
    state.mkdir()
    for name, text in FAKE_SLURM.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    # submitit remembers for the whole process how jobs of these numbers ended.
    monkeypatch.setattr(SlurmJob, "watcher", SlurmInfoWatcher(delay_s=600))
    yield FakeSlurm(state)
    for session in state.glob("*.session"):
        for number in (*map(int, pids_of(state / f"{session.stem}.pids")), -int(session.read_text())):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def pids_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
