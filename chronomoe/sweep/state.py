"""What became of a point, read from its run directory and the lock beside it: the one truth of a sweep.

Whoever works on a point holds its lock, a file in `locks/`, which the operating system releases when that process ends,
however it ends. So a point is never taken for running because something crashed, and never run twice at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from chronomoe.settings import InputError
from chronomoe.study.run import read_json

WAITING, RUNNING, DONE, FAILED, STOPPED, PRUNED = "waiting", "running", "done", "failed", "stopped", "pruned"


class State(NamedTuple):
    status: str
    summary: dict[str, Any]
    """Empty unless the run wrote one."""

    @property
    def error(self) -> str | None:
        return self.summary.get("error")


def lock_of(run_dir: Path) -> FileLock:
    """`runs/<hash>` of a sweep's folder has the lock `locks/<hash>`."""
    path = run_dir.parents[1] / "locks" / run_dir.name
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)


def is_locked(run_dir: Path) -> bool:
    """Whether some process works on this point now."""
    lock = lock_of(run_dir)
    try:
        with lock.acquire(blocking=False):
            return False
    except Timeout:
        return True


def read_state(run_dir: Path) -> State:
    return State(RUNNING, {}) if is_locked(run_dir) else read_left(run_dir)


def read_left(run_dir: Path) -> State:
    """What a run left, whoever works on it. `stopped` is any unfinished run that left something, also one whose process
    was killed. A run writes its config first; what lies in a folder without one is of a run that was deleted while it
    went on."""
    if not (run_dir / "config.yaml").is_file():
        return State(WAITING, {})
    try:
        summary = read_json(run_dir / "summary.json")
    except InputError:
        summary = {}  # unreadable: as if it had not been written
    if summary.get("status") in (DONE, FAILED, STOPPED):
        return State(summary["status"], summary)
    return State(STOPPED, {})
