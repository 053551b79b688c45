"""`python -m chronomoe.compare runs=<folder>`: what the arms of a sweep or a multirun differ in, with intervals.

Reads every finished run below the folders, pairs them by seed, prints a table a metric and writes into the first folder

| file | what |
|---|---|
| `compare.json` | metric -> arm -> n, mean, mean_difference, ci_low, ci_high, wins, p, corrected_p; and keys below |
| `compare.png` | loss against balance, one mark an arm |
| `curves.png` | validation loss by tokens, and the paired difference, with bands |

| key of `compare.json` | what |
|---|---|
| axis, within, baseline, left_out, notes | what was compared, unfinished runs, what to know besides |
| verdicts | arm -> what its interval and the documented rule say of its loss: `chronomoe/study/verdicts.py` |
| association, phases | of coherence: `chronomoe/study/coherence_summary.py` |
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, setting
from chronomoe.study.coherence_summary import (
    association_json,
    phases_json,
    read_coherence,
    say_association,
    say_phases,
)
from chronomoe.study.comparison import Comparison, compare_runs, is_finished
from chronomoe.study.comparison_table import label, tables
from chronomoe.study.curves_figure import write_curves
from chronomoe.study.front_figure import write_front
from chronomoe.study.pairs import ENOUGH_PAIRS
from chronomoe.study.progress import progress
from chronomoe.study.run import Run
from chronomoe.study.significance import least_p
from chronomoe.study.sweep_folder import find_runs, read_sweeps
from chronomoe.study.verdicts import Verdict, verdict
from chronomoe.whole_file import write_json


@dataclass(kw_only=True)
class CompareSettings:
    runs: str = setting()
    """A folder of runs, such as a sweep's or a multirun's; or several, separated by commas."""
    axis: list[str] = setting([])
    """Settings in which arms may differ, keys or groups; empty: those of the sweep, without one `chrono`."""
    within: list[str] = setting([])
    """Settings inside whose values arms are compared, never across; empty: those of the sweep."""
    baseline: str | None = setting(None)
    """The arm the others are compared with; null: the sweep's, without one the arm without control."""


def main() -> None:
    settings = read_arguments(CompareSettings, sys.argv[1:])
    folders = [Path(folder.strip()) for folder in settings.runs.split(",")]
    comparison = compare_folders(folders, settings)
    verdicts = all_verdicts(comparison)
    coherence = {label(arm): read_coherence(arm) for arm in progress(comparison.arms, "phases", "arm")}
    panels = {name: found.panel for name, found in coherence.items() if found.panel is not None}
    phases = {name: found.phases for name, found in coherence.items() if found.phases}

    print(tables(comparison))
    say("Validation loss, two verdicts", map(say_verdict, verdicts, verdicts.values()))
    lines = [say_association(name, [panel]) for name, panel in panels.items()]
    together = [say_association("all arms", list(panels.values()))] if len(panels) > 1 else []
    say("Coherence and validation loss, correlation over the seeds of an arm (docs/statistics.md)", lines + together)
    say("Phases of coherence", (say_phases(name, list(found.values())) for name, found in phases.items()))
    say("Remarks", remarks(comparison))

    found = {
        "verdicts": {name: said._asdict() for name, said in verdicts.items()},
        "association": association_json(panels),
        "phases": {name: phases_json(found) for name, found in phases.items()},
    }
    print()
    print(write_json(folders[0] / "compare.json", as_json(comparison) | found))
    for path in (
        draw_front(comparison, folders[0] / "compare.png"),
        write_curves(comparison, folders[0] / "curves.png"),
    ):
        if path is not None:
            print(path)


def say(title: str, lines: Iterable[str]) -> None:
    """A block of lines as a Markdown list, if there is any."""
    block = [f"- {line}" for line in lines]
    if block:
        print("\n".join([f"\n{title}:", *block]))


def compare_folders(folders: Sequence[Path], settings: CompareSettings) -> Comparison:
    """The runs below the folders, compared as the settings say or else as the sweep recorded."""
    directories = [directory for folder in folders for directory in find_runs(folder)]
    recorded = read_sweeps(folders)
    runs = [open_run(directory) for directory in progress(directories, "read", "run")]
    comparison = compare_runs(
        runs,
        axis=settings.axis or (["chrono"] if recorded is None else recorded.axis),
        within=settings.within or ([] if recorded is None else recorded.within),
        baseline=settings.baseline or (None if recorded is None else recorded.baseline),
    )
    if all(arm.is_baseline for arm in comparison.arms):
        raise InputError(
            f"all finished runs are of one arm, {comparison.baseline}: there is nothing to compare it with"
        )
    return comparison


def open_run(directory: Path) -> Run:
    """A run with its curves read, if it is finished: only then are they asked for."""
    run = Run.load(directory)
    if is_finished(run):
        _ = run.metrics
    return run


def all_verdicts(comparison: Comparison) -> dict[str, Verdict]:
    found = {
        label(arm): verdict(arm, comparison.baseline_of(arm.stratum)) for arm in comparison.arms if not arm.is_baseline
    }
    return {name: said for name, said in found.items() if said is not None}


def say_verdict(name: str, said: Verdict) -> str:
    better = "loss lower and specialisation higher" if said.pareto else "loss lower"
    return (
        f"{name}: {said.interval} by its interval; by the documented rule {said.documented}: {better} in "
        f"{said.better} of {said.n} seeds (robust by chance: {said.chance:.0%})"
    )


def remarks(comparison: Comparison) -> list[str]:
    """Warnings and notes, a line each."""
    lines = [*comparison.notes]
    if comparison.left_out:
        lines.append(f"{len(comparison.left_out)} unfinished or failed run(s) left out")
    losses = [arm.effects["val_loss"].n for arm in comparison.arms if "val_loss" in arm.effects]
    if losses and min(losses) < ENOUGH_PAIRS:
        lines.append(f"Fewer than {ENOUGH_PAIRS} pairs: an interval from so few says little.")
    if any("tokens_per_sec" in arm.effects for arm in comparison.arms):
        lines.append("Throughput also tells what else the machine did meanwhile: chronomoe.benchmark compares speeds.")
    if losses:
        lines.append(f"Least p that {min(losses)} pairs can reach: {least_p(min(losses)):.2g}.")
    return lines


def as_json(comparison: Comparison) -> dict[str, Any]:
    metrics = dict.fromkeys(key for arm in comparison.arms for key in arm.effects)
    effects: dict[str, Any] = {
        key: {label(arm): arm.effects[key]._asdict() for arm in comparison.arms if key in arm.effects}
        for key in metrics
    }
    return effects | {
        "axis": list(comparison.axis),
        "within": list(comparison.within),
        "baseline": comparison.baseline,
        "left_out": [str(run.directory) for run in comparison.left_out],
        "notes": list(comparison.notes),
    }


def draw_front(comparison: Comparison, path: Path) -> Path | None:
    """Loss against balance of all arms that have both; None with fewer than two."""
    loss, balance = (
        {label(arm): arm.effects[key] for arm in comparison.arms if key in arm.effects}
        for key in ("val_loss", "max_vio_late")
    )
    return write_front(loss, balance, comparison.baseline, path) if len(loss.keys() & balance.keys()) > 1 else None


if __name__ == "__main__":
    guarded(main)
