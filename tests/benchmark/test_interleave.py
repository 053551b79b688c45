"""Who is timed when, and that one who fails stops nobody else."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace

import pytest

from chronomoe.benchmark.interleave import interleave
from chronomoe.benchmark.worker import Worker, WorkerFailed


class Recorded:
    """Stands for a worker: notes in `calls` when it is asked, and fails at its `fails_at`-th question."""

    def __init__(self, name: str, calls: list[tuple[str, int]], fails_at: int = -1) -> None:
        self.name, self.calls, self.fails_at, self.asked = name, calls, fails_at, 0

    def start(self) -> None:
        pass

    def ask(self, method: str, steps: int) -> int:
        assert method == "run"
        self.asked += 1
        if self.asked == self.fails_at:
            raise WorkerFailed("boom")
        self.calls.append((self.name, steps))
        return self.asked


def test_each_repeat_times_everyone_once_and_begins_with_another_and_warm_up_is_dropped() -> None:
    calls: list[tuple[str, int]] = []
    workers = {name: Recorded(name, calls) for name in "abc"}
    measured = interleave(workers, repeats=4, steps=7, warmup_steps=2)  # type: ignore[arg-type]
    assert [name for name, steps in calls if steps == 2] == ["a", "b", "c"]
    assert "".join(name for name, steps in calls if steps == 7) == "abc" + "bca" + "cab" + "abc"
    assert measured.timings == {name: [2, 3, 4, 5] for name in "abc"}


def test_who_fails_in_a_repeat_is_left_out_and_has_no_timings(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[str, int]] = []
    workers = {"good": Recorded("good", calls), "bad": Recorded("bad", calls, fails_at=2)}
    measured = interleave(workers, repeats=3, steps=1, warmup_steps=0)  # type: ignore[arg-type]
    assert measured.errors == {"bad": "boom"}
    assert measured.timings == {"good": [1, 2, 3]}
    assert "bad: boom\n" in capsys.readouterr().err


def test_a_process_that_dies_is_reported_and_the_others_go_on() -> None:
    """Real processes: the first one's `run` is the exit of its process, the other's is a harmless one."""
    with ExitStack() as stack:
        workers = {name: Worker(partial(SimpleNamespace, run=run)) for name, run in (("a", os._exit), ("b", float))}
        for worker in workers.values():
            stack.callback(worker.close)
        measured = interleave(workers, repeats=2, steps=9, warmup_steps=0)
    assert measured.errors == {"a": "the process died, exit code 9"}
    assert measured.timings == {"b": [9.0, 9.0]}
