"""A process of its own: it answers, and whatever goes wrong in it is one line here."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module

import pytest

from chronomoe.benchmark.worker import Worker, WorkerFailed


@pytest.fixture
def other_process() -> Iterator[Worker]:
    """Serves the module `os` of another process."""
    with closing(Worker(import_module, "os")) as worker:
        worker.start()
        yield worker


def test_it_is_another_process_and_answers_until_it_is_closed(other_process: Worker) -> None:
    assert other_process.ask("getpid") == other_process.ask("getpid") != os.getpid()
    other_process.close()
    assert other_process.process.exitcode == 0


def test_an_exception_is_its_type_and_the_first_line_of_its_message(other_process: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"^FileNotFoundError: \[Errno 2\].*nowhere'$"):
        other_process.ask("listdir", "/nowhere")


def test_an_exception_while_building_is_reported_by_start() -> None:
    with (
        closing(Worker(int, "no number")) as worker,
        pytest.raises(WorkerFailed, match=r"^ValueError: invalid"),
    ):
        worker.start()


def test_a_process_that_leaves_is_reported_with_its_exit_code(other_process: Worker) -> None:
    with pytest.raises(WorkerFailed, match=r"^the process died, exit code 3$"):
        other_process.ask("_exit", 3)
    with pytest.raises(WorkerFailed, match="exit code 3"):  # and again, however often it is asked
        other_process.ask("getpid")


def test_a_killed_process_is_reported_with_the_signal(other_process: Worker) -> None:
    os.kill(other_process.ask("getpid"), signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="killed by SIGKILL"):
        other_process.ask("getpid")
