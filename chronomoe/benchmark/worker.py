"""A process for each thing that is measured, so that memory, allocator and process-wide settings are its own.

The parent builds a `Worker` from a factory (a class or function that the new process can import) and its arguments; the
object lives in the process, and `ask("method", ...)` calls it there. While one process works the others are blocked on
their pipes. A process that dies or raises gives a `WorkerFailed` with one line.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any


class WorkerFailed(RuntimeError):
    """What happened in the process, in one line."""


class Worker:
    def __init__(self, factory: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, self.theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(self.theirs, factory, arguments), daemon=True)

    def start(self) -> None:
        """Returns when the object is built. Raises WorkerFailed."""
        self.process.start()
        self.theirs.close()
        self.wait()

    def wait(self) -> Any:
        """The next answer. Raises WorkerFailed if there is none to come or it says what went wrong."""
        try:
            well, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise WorkerFailed(f"the process died, {how_it_ended(self.process.exitcode)}") from None
        if not well:
            raise WorkerFailed(value)
        return value

    def ask(self, method: str, *arguments: Any) -> Any:
        with suppress(OSError):  # it is dead, and waiting says of what
            self.pipe.send((method, arguments))
        return self.wait()

    def close(self) -> None:
        self.pipe.close()
        if self.process.pid is None:
            return
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def how_it_ended(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def serve(pipe: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The process's whole life: build the object, then answer until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which closes the pipe
    try:
        served = factory(*arguments)
        pipe.send((True, None))
        while True:
            method, values = pipe.recv()
            pipe.send((True, getattr(served, method)(*values)))
    except EOFError:
        return
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        pipe.send((False, f"{type(error).__name__}: {first_line}"))
