"""What became of a point is read from its folder and its lock, whatever happened to them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chronomoe.sweep.state import DONE, FAILED, RUNNING, STOPPED, WAITING, is_locked, lock_of, read_left, read_state


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "s" / "runs" / "abc"


def leave(run_dir: Path, summary: str | None = None, config: bool = True) -> None:
    run_dir.mkdir(parents=True)
    if config:
        (run_dir / "config.yaml").write_text("seed: 1\n")
    if summary is not None:
        (run_dir / "summary.json").write_text(summary)


LEFT = {
    "done": ('{"status": "done", "val_loss": 2.5}', DONE),
    "failed": ('{"status": "failed", "error": "it broke"}', FAILED),
    "stopped": ('{"status": "stopped"}', STOPPED),
    "no_summary": (None, STOPPED),
    "half_a_summary": ('{"status": "do', STOPPED),
    "no_object": ("[1]", STOPPED),
    "another_word": ('{"status": "fine"}', STOPPED),
}


@pytest.mark.parametrize(("summary", "status"), LEFT.values(), ids=LEFT.keys())
def test_the_state_is_what_the_run_left(run_dir: Path, summary: str | None, status: str) -> None:
    leave(run_dir, summary)
    state = read_state(run_dir)
    assert state.status == status
    assert state.summary == (
        json.loads(summary or "") if status in (DONE, FAILED) or summary == '{"status": "stopped"}' else {}
    )
    assert state.error == ("it broke" if status == FAILED else None)


def test_a_point_without_a_folder_waits(run_dir: Path) -> None:
    assert read_state(run_dir) == (WAITING, {})


def test_what_a_deleted_run_wrote_after_it_was_deleted_counts_for_nothing(run_dir: Path) -> None:
    leave(run_dir, '{"status": "done"}', config=False)
    assert read_state(run_dir) == (WAITING, {})


def test_a_point_whose_lock_is_held_runs_whatever_its_folder_says(run_dir: Path) -> None:
    leave(run_dir, '{"status": "done"}')
    with lock_of(run_dir):
        assert read_state(run_dir).status == RUNNING
        assert is_locked(run_dir)
        assert read_left(run_dir).status == DONE
    assert read_state(run_dir).status == DONE


HOLD = """
import sys
from pathlib import Path
from chronomoe.sweep.state import lock_of
with lock_of(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_process_however_that_ends(
    python: Callable[..., subprocess.Popen[str]], run_dir: Path
) -> None:
    holder = python("-c", HOLD, str(run_dir), stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    assert is_locked(run_dir)
    holder.kill()
    holder.communicate(timeout=30)
    assert not is_locked(run_dir)


def test_locks_of_two_points_are_two(run_dir: Path) -> None:
    with lock_of(run_dir):
        assert not is_locked(run_dir.with_name("def"))
