"""The table of a sweep holds every point, every number and every error, and is whole at any moment."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronomoe.sweep.board import Board, Entry, write_results
from chronomoe.sweep.points import Point
from chronomoe.sweep.state import DONE, FAILED, PRUNED, RUNNING, STOPPED, WAITING


@pytest.fixture(scope="module")
def entry(configure: Callable[..., Any]) -> Callable[..., Entry]:
    """entry(overrides, status, **summary)"""
    config = configure()

    def entry(
        overrides: str, status: str = WAITING, number: int = 0, error: str | None = None, **summary: Any
    ) -> Entry:
        point = Point(overrides=overrides.split(), config=config, run_dir=Path("s/runs/abc"))
        return Entry(point, status=status, number=number, error=error, summary=summary)

    return entry


def board(
    *entries: Entry, axes: tuple[str, ...] = ("chrono", "seed"), objectives: tuple[str, ...] = ("val_loss",)
) -> Board:
    return Board(name="s", objectives=objectives, axes=axes, jobs=2, entries=list(entries), total=len(entries))


def written(board: Board, folder: Path) -> list[dict[str, str]]:
    write_results(board, folder / "results.csv")
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_overrides_axes_status_folder_numbers_and_error_in_that_order(
    entry: Callable[..., Entry], tmp_path: Path
) -> None:
    (row,) = written(board(entry("chrono=off seed=1", DONE, val_loss=2.5, steps=8, versions={"a": 1})), tmp_path)
    assert list(row) == [
        "overrides",
        "chrono",
        "seed",
        "status",
        "run_dir",
        "config_hash",
        "val_loss",
        "steps",
        "error",
    ]
    assert (row["overrides"], row["chrono"], row["seed"]) == ("chrono=off seed=1", "off", "1")
    assert (row["status"], row["run_dir"], row["val_loss"]) == ("done", "s/runs/abc", "2.5")


def test_every_point_has_a_row_and_numbers_of_any_point_a_column(entry: Callable[..., Entry], tmp_path: Path) -> None:
    rows = written(
        board(
            entry("chrono=off seed=1", WAITING),
            entry("chrono=off seed=2", FAILED, error='loss, "nan"\nat step 3', status_=1),
            entry("chrono.gamma=1", DONE, val_loss=1.0),
        ),
        tmp_path,
    )
    assert [row["status"] for row in rows] == ["waiting", "failed", "done"]
    assert rows[1]["error"] == 'loss, "nan"\nat step 3'
    assert [row["val_loss"] for row in rows] == ["", "", "1.0"]
    assert (rows[2]["chrono"], rows[2]["seed"]) == ("", "")
    assert list(rows[0])[-1] == "error"


def test_a_value_may_hold_what_separates(entry: Callable[..., Entry], tmp_path: Path) -> None:
    point = Point(
        overrides=["optim.betas=[0.8,0.9]", "data.path='a=b'"], config=entry("").point.config, run_dir=Path("r")
    )
    (row,) = written(board(Entry(point), axes=("optim.betas", "data.path")), tmp_path)
    assert (row["optim.betas"], row["data.path"]) == ("[0.8,0.9]", "'a=b'")


def test_rows_stand_in_the_order_of_the_points_not_in_that_of_their_arrival(
    entry: Callable[..., Entry], tmp_path: Path
) -> None:
    rows = written(board(entry("seed=3", number=2), entry("seed=1", number=0), entry("seed=2", number=1)), tmp_path)
    assert [row["seed"] for row in rows] == ["1", "2", "3"]


def test_a_table_that_cannot_be_written_leaves_the_last_one(
    entry: Callable[..., Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(board(entry("seed=1", RUNNING)), tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_results(board(entry("seed=1", DONE)), tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == before
    assert os.listdir(tmp_path) == ["results.csv"]


def test_the_best_point_is_the_least_loss_or_the_most_of_what_should_be_much(entry: Callable[..., Entry]) -> None:
    low, high = entry("a", DONE, val_loss=1.0, load_entropy=0.2), entry("b", DONE, val_loss=2.0, load_entropy=0.9)
    unfinished, unknown = entry("c", STOPPED, val_loss=0.1, load_entropy=1.0), entry("d", DONE, val_loss=None)
    assert board(high, low, unfinished, unknown).best() is low
    assert board(high, low, unfinished, unknown, objectives=("load_entropy",)).best() is high
    assert board(unfinished).best() is None


def test_the_time_left_counts_what_running_points_have_done(entry: Callable[..., Entry]) -> None:
    half = entry("a", RUNNING)
    half.steps = half.point.config.trainer.max_steps // 2
    others = [entry("b", DONE, wall_seconds=10.0), entry("c", DONE, wall_seconds=20.0), entry("d", PRUNED), entry("e")]
    assert board(half, *others).seconds_left() == pytest.approx(15.0 * 1.5 / 2)
    assert board(half, entry("e")).seconds_left() is None
    assert board(entry("f", FAILED), entry("b", DONE, wall_seconds=10.0)).seconds_left() == 0.0
