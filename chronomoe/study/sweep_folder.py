"""Folders of runs: the runs below them, and what a sweep wrote down about itself in `sweep.yaml`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chronomoe.settings import InputError
from chronomoe.study.differences import is_beneath
from chronomoe.study.run import read_config


class SweepRecord(NamedTuple):
    """How a sweep's runs are meant to be compared."""

    axis: list[str]
    """Config keys in which its points differ, without the seed and what is beneath `within`."""
    within: list[str]
    baseline: str | None


def find_runs(folder: Path) -> list[Path]:
    """Directories of the runs in a folder, in the order of the numbers in their paths, those of a sweep in the order of
    its points; a run holds no other run.

    Raises InputError when the folder cannot be read or holds none.
    """
    if not folder.is_dir():
        raise InputError(f"runs={folder}: there is no such folder")
    found = []
    for path, names, files in os.walk(folder, onerror=refuse):
        if "config.yaml" in files:
            found.append(Path(path))
            names.clear()
    if not found:
        raise InputError(f"runs={folder}: no run in it (no config.yaml); give the folder of a sweep or a multirun")
    order = point_order(folder)
    return sorted(found, key=lambda path: (order.get(path.name, len(order)), by_numbers(path)))


def by_numbers(path: Path) -> list[str]:
    """Sorts `run_9` before `run_10`."""
    return [part.zfill(20) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def point_order(folder: Path) -> dict[str, int]:
    """Name of a run directory -> its place among a sweep's points; empty for a folder that no sweep wrote."""
    path = folder / "results.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            Path(row["run_dir"]).name: number for number, row in enumerate(csv.DictReader(file)) if "run_dir" in row
        }


def refuse(error: OSError) -> None:
    raise InputError(f"runs={error.filename}: cannot be read ({error.strerror})")


def read_sweep(folder: Path) -> SweepRecord | None:
    """None for a folder that no sweep wrote."""
    path = folder / "sweep.yaml"
    if not path.is_file():
        return None
    recorded = read_config(path)
    within = strings(recorded.get("within"))
    varies = [key for key in strings(recorded.get("varies")) if key != "seed" and not is_beneath(key, within)]
    baseline = recorded.get("baseline")
    return SweepRecord(varies, within, None if baseline is None else str(baseline))


def read_sweeps(folders: Sequence[Path]) -> SweepRecord | None:
    """What the sweeps in several folders recorded, together; the first that names a baseline settles it."""
    records = [record for record in map(read_sweep, folders) if record is not None]
    if not records:
        return None
    return SweepRecord(
        axis=list(dict.fromkeys(key for record in records for key in record.axis)),
        within=list(dict.fromkeys(entry for record in records for entry in record.within)),
        baseline=next((record.baseline for record in records if record.baseline), None),
    )


def strings(value: object) -> list[str]:
    return [str(element) for element in value] if isinstance(value, list) else []
