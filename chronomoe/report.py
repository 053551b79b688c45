"""`python -m chronomoe.report run=<run directory>` or `runs=<folder of a sweep or of runs>`: figures and `report.html`.

| argument | writes |
|---|---|
| `run=` | the run's `figures/*.png` and `report.html` again |
| `runs=` | `report.html` and `figures/*.png, *.svg` into the folder, of every finished run below it |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, setting
from chronomoe.study.arms import point
from chronomoe.study.comparison import Comparison, compare_runs, is_finished
from chronomoe.study.progress import progress
from chronomoe.study.run import Run
from chronomoe.study.shown_arms import words_of
from chronomoe.study.sweep_folder import SweepRecord, find_runs, read_sweep


@dataclass(kw_only=True)
class ReportSettings:
    run: str | None = setting(None)
    """The directory of one run."""
    runs: str | None = setting(None)
    """A folder of runs, such as a sweep's or a multirun's."""
    axis: list[str] = setting([])
    """Settings in which arms may differ, keys or groups; empty: those of the sweep, without one `chrono`."""
    within: list[str] = setting([])
    """Settings inside whose values arms are compared, never across; empty: those of the sweep."""
    baseline: str | None = setting(None)
    """The arm the others are compared with; null: the sweep's, without one the arm without control."""


def main() -> None:
    settings = read_arguments(ReportSettings, sys.argv[1:])
    if bool(settings.run) == bool(settings.runs):
        raise InputError("give run=<directory of one run>, or runs=<folder of a sweep or of runs>")
    for path in report_run(settings.run) if settings.run else report_sweep(Path(settings.runs or ""), settings):
        print(path)


def report_run(directory: str) -> list[Path]:
    from chronomoe.study.figures import draw_run
    from chronomoe.study.report import write_report

    run = Run.load(directory)
    return [*draw_run(run), write_report(run)]


def report_sweep(folder: Path, settings: ReportSettings) -> list[Path]:
    """Page and figures of what is finished below a folder; while there is nothing to compare, a page of what is not."""
    from chronomoe.study.sweep_figures import draw_sweep
    from chronomoe.study.sweep_report import Sweep, write_sweep_report, write_unfinished

    runs = open_runs(folder)
    name = str(runs[0].setting("sweep.name") or folder.resolve().name)
    missing = nothing_to_compare(runs, None if settings.baseline else recorded_of(folder).baseline)
    if missing:
        return [write_unfinished(name, folder, missing, runs)]
    sweep = Sweep.read(name, folder, compare(runs, folder, settings))
    return [write_sweep_report(sweep), *draw_sweep(sweep)]


def open_runs(folder: Path) -> list[Run]:
    return [Run.load(directory) for directory in progress(find_runs(folder), "read", "run")]


def recorded_of(folder: Path) -> SweepRecord:
    """What the sweep says of itself; of a folder that no sweep wrote, that runs differ in their control."""
    return read_sweep(folder) or SweepRecord(["chrono"], [], None)


def compare(runs: Sequence[Run], folder: Path, settings: ReportSettings) -> Comparison:
    """As the settings say, or else as the sweep recorded."""
    for run in progress([run for run in runs if is_finished(run)], "curves", "run"):
        _ = run.metrics  # read when first asked for: here, where there is a bar
    recorded = recorded_of(folder)
    return compare_runs(
        runs,
        axis=settings.axis or recorded.axis,
        within=settings.within or recorded.within,
        baseline=settings.baseline or recorded.baseline,
    )


def nothing_to_compare(runs: Sequence[Run], baseline: str | None) -> str:
    """Why a sweep that goes on cannot be compared yet; empty if it can."""
    finished = [run for run in runs if is_finished(run)]
    if not finished:
        return "no run is finished"
    wanted = words_of(baseline or "").items()
    is_sweep = all(point(run) for run in runs)
    if len(finished) < len(runs) and is_sweep and not any(wanted <= point(run).items() for run in finished):
        return f"no run of the baseline {baseline} is finished"
    return ""


if __name__ == "__main__":
    guarded(main)
