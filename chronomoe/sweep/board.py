"""Where every point of a sweep stands, in one place for the screen and the table of results.

results.csv: overrides, one column an axis, status, run_dir, every number of the point's summary, error
"""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomoe.study.measurements import METRICS
from chronomoe.sweep.launcher import Job
from chronomoe.sweep.points import Point
from chronomoe.sweep.state import DONE, FAILED, PRUNED, RUNNING, WAITING
from chronomoe.whole_file import write_whole

if TYPE_CHECKING:
    from optuna import Trial

ENDED = (DONE, FAILED, PRUNED)


@dataclass(eq=False)
class Entry:
    """One point and what is known of it."""

    point: Point
    number: int = 0
    """Its place in the table: of the grid, or of the search's trial."""
    status: str = WAITING
    summary: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    restarts: int = 0
    steps: int = 0
    """Optimizer steps logged so far, while it runs."""
    job: Job | None = None
    """Of this sweep; None while another process works on the point."""
    trial: Trial | None = None
    is_behind: bool = False
    """The pruner has asked it to stop."""
    started: float = field(default_factory=time.monotonic)
    """On this process's clock, seconds."""


@dataclass
class Board:
    name: str
    objectives: Sequence[str]
    axes: Sequence[str]
    jobs: int
    """Points at a time."""
    entries: list[Entry] = field(default_factory=list)
    total: int = 0
    """Points there will be; a search adds them one by one."""

    def count(self, *statuses: str) -> int:
        return sum(entry.status in statuses for entry in self.entries)

    def with_status(self, *statuses: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.status in statuses)

    def best(self) -> Entry | None:
        """The finished point with the best first objective."""
        metric = self.objectives[0]
        known = [entry for entry in self.with_status(DONE) if entry.summary.get(metric) is not None]
        sign = -1 if METRICS[metric].higher_is_better else 1
        return min(known, key=lambda entry: sign * entry.summary[metric], default=None)

    def seconds_left(self) -> float | None:
        """From the median time of the finished points and what the running ones have done; None while none is done."""
        times = [entry.summary["wall_seconds"] for entry in self.with_status(DONE) if entry.summary.get("wall_seconds")]
        if not times:
            return None
        begun = sum(entry.steps / entry.point.config.trainer.max_steps for entry in self.with_status(RUNNING))
        return statistics.median(times) * max(0.0, self.total - self.count(*ENDED) - begun) / self.jobs


def write_results(board: Board, path: Path) -> None:
    """Replace `results.csv` by the board as it stands."""
    rows = [row_of(entry, board.axes) for entry in sorted(board.entries, key=lambda entry: entry.number)]
    numbers = dict.fromkeys(key for row in rows for key in row)
    columns = [*(key for key in numbers if key != "error"), "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def row_of(entry: Entry, axes: Iterable[str]) -> dict[str, Any]:
    written = dict(override.partition("=")[::2] for override in entry.point.overrides)
    measured = {
        key: value
        for key, value in entry.summary.items()
        if key not in ("status", "error") and not isinstance(value, dict)
    }
    return {
        "overrides": entry.point.name,
        **{axis: written.get(axis, "") for axis in axes},
        "status": entry.status,
        "run_dir": str(entry.point.run_dir),
        "config_hash": entry.point.hash,
        **measured,
        "error": entry.error or "",
    }
