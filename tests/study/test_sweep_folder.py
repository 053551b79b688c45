"""Runs found below folders, and a sweep's own word on how they are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from chronomoe.settings import InputError
from chronomoe.study.sweep_folder import find_runs, read_sweep, read_sweeps


def test_runs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["9", "10", "2", "seed_10", "seed_9"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert [path.name for path in find_runs(tmp_path)] == ["2", "9", "10", "seed_9", "seed_10"]


def test_a_single_run_is_found_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert find_runs(tmp_path) == [tmp_path]


def record(folder: Path, **content: object) -> Path:
    folder.mkdir()
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_the_axis_is_what_varies_without_seed_and_within(tmp_path: Path) -> None:
    varies = ["chrono.law", "model.dim", "chrono.clocks.micro_period", "seed"]
    folder = record(tmp_path / "a", varies=varies, within=["model", "chrono/clocks"], baseline="chrono=off")
    assert read_sweep(folder) == (["chrono.law"], ["model", "chrono/clocks"], "chrono=off")


def test_a_folder_of_no_sweep_has_no_record(tmp_path: Path) -> None:
    assert read_sweep(tmp_path) is None
    assert read_sweeps([tmp_path]) is None


def test_several_sweeps_are_read_together(tmp_path: Path) -> None:
    one = record(tmp_path / "a", varies=["chrono.law", "seed"], within=[], baseline=None)
    two = record(tmp_path / "b", varies=["chrono.law", "chrono.gain"], within=["data"], baseline="chrono=off")
    assert read_sweeps([one, two]) == (["chrono.law", "chrono.gain"], ["data"], "chrono=off")


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"sweep\.yaml: cannot be read"):
        read_sweep(tmp_path)
