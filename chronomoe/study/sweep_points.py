"""The points of a sweep that have no finished run: failed, still going on, or not begun.

A run below the folder speaks for itself; `results.csv`, where a sweep wrote one, knows the points without a run too.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chronomoe.study.run import Run, unreadable


class Point(NamedTuple):
    name: str
    """Its overrides; of a run of no sweep, its directory."""
    status: str
    directory: str
    error: str
    last_step: int | None


def unfinished_points(folder: Path, unfinished: Sequence[Run], finished: Sequence[Run]) -> list[Point]:
    """Failed points first."""
    recorded = read_results(folder / "results.csv")
    by_directory = {Path(row["run_dir"]).name: row for row in recorded}
    points = [point_of(run, by_directory.get(run.directory.name, {})) for run in unfinished]
    runs = {run.directory.name for run in [*unfinished, *finished]}
    points += [
        Point(row.get("overrides", ""), row["status"], row["run_dir"], row.get("error", ""), None)
        for directory, row in by_directory.items()
        if directory not in runs and row["status"] != "done"
    ]
    return sorted(points, key=lambda point: point.status != "failed")


def point_of(run: Run, row: dict[str, str]) -> Point:
    """A run without a summary's status is going on, unless the sweep knows better."""
    return Point(
        name=str(run.setting("sweep.point") or run.directory.name),
        status=str(run.summary.get("status") or row.get("status") or "unfinished"),
        directory=str(run.directory),
        error=str(run.summary.get("error") or row.get("error") or ""),
        last_step=run.last_step,
    )


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows that say which run is meant and how it stands."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (ValueError, csv.Error, OSError) as error:
        raise unreadable(path, error) from error
    return [row for row in rows if row.get("run_dir") and row.get("status")]


def count_status(points: Sequence[Point]) -> str:
    """`1 failed, 3 waiting`."""
    return ", ".join(f"{count} {status}" for status, count in Counter(point.status for point in points).items())
