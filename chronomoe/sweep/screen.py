"""What a person sees of a sweep: a table, redrawn while it runs, or a line a point where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from chronomoe.sweep.board import ENDED, Board, Entry
from chronomoe.sweep.state import DONE, FAILED, PRUNED, RUNNING, STOPPED, WAITING

ROWS = 16
"""Points shown at a time: those that run, then those that ended last."""
STYLES = {DONE: "green", FAILED: "bold red", RUNNING: "cyan", STOPPED: "yellow", PRUNED: "dim", WAITING: "dim"}


class Screen:
    """A context: the table is there inside it."""

    def __init__(self, board: Board) -> None:
        self.board = board
        redrawn = sys.stderr.isatty()  # rich also calls a pipe a terminal where FORCE_COLOR is set, as notebooks do
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=not redrawn)
        self._live = Live(console=self.console, auto_refresh=False) if redrawn else None
        self._ended: list[Entry] = [entry for entry in board.entries if entry.status in ENDED]

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self.refresh()
            self._live.stop()

    def refresh(self) -> None:
        if self._live:
            self._live.update(Group(self._headline(), self._table()), refresh=True)

    def say(self, message: str) -> None:
        self.console.print(escape(message))

    def ended(self, entry: Entry) -> None:
        """A point is done, failed or pruned."""
        self._ended.append(entry)
        if not self._live:
            done = f"[{self.board.count(*ENDED)}/{self.board.total}]"
            self.say(f"{done} {entry.point.name}: {entry.status}{self._outcome(entry)}")

    def _outcome(self, entry: Entry) -> str:
        if entry.error:
            return f": {entry.error}"
        numbers = [
            f"{metric} {entry.summary[metric]:.4g}"
            for metric in self.board.objectives
            if entry.summary.get(metric) is not None
        ]
        return f", {', '.join(numbers)}" if numbers else ""

    def _headline(self) -> Text:
        board = self.board
        parts = [f"{board.count(DONE)}/{board.total} done", f"{board.count(RUNNING)} running"]
        parts += [f"{board.count(status)} {status}" for status in (FAILED, PRUNED, STOPPED) if board.count(status)]
        best, left = board.best(), board.seconds_left()
        if best is not None:
            metric = board.objectives[0]
            parts.append(f"best {metric} {best.summary[metric]:.4f} ({best.point.name})")
        if left is not None and board.count(*ENDED) < board.total:
            parts.append(f"{duration(left)} left")
        return Text(f"{board.name}  ", style="bold").append("  ·  ".join(parts), style="not bold")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("point", "status", "progress", *self.board.objectives, "time"):
            table.add_column(column, justify="left" if column in ("point", "status", "progress") else "right")
        running = list(self.board.with_status(RUNNING))
        latest = self._ended[::-1][: max(0, ROWS - len(running))]
        for entry in [*running[:ROWS], *latest]:
            table.add_row(*self._row(entry))
        return table

    def _row(self, entry: Entry) -> list[Any]:
        total = entry.point.config.trainer.max_steps
        steps = total if entry.status == DONE else entry.steps
        seconds = entry.summary.get("wall_seconds") if entry.status != RUNNING else time.monotonic() - entry.started
        cells: list[Any] = [
            escape(entry.point.name),
            Text(entry.status if entry.job or entry.status != RUNNING else "elsewhere", style=STYLES[entry.status]),
            escape(entry.error) if entry.error else ProgressBar(total=total, completed=steps, width=20),
        ]
        for metric in self.board.objectives:
            value = entry.summary.get(metric)
            cells.append("" if value is None else f"{value:.4f}")
        return [*cells, "" if seconds is None else duration(seconds)]


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
