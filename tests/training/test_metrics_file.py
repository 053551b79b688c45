"""`metrics.csv`: a row a step, columns that may come late, and a resumed run that goes on where its checkpoint was."""

from __future__ import annotations

import csv
from pathlib import Path

from chronomoe.training.metrics_file import MetricsFile, read_rows


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_new_column_leaves_the_rows_before_it_empty(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=0)
    metrics.log_metrics({"train/loss": 2.0}, 1)
    metrics.log_metrics({"val/loss": 3.0}, 1)
    metrics.log_metrics({"train/loss": 1.5}, 2)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "2.0", "val/loss": ""},
        {"step": "1", "train/loss": "", "val/loss": "3.0"},
        {"step": "2", "train/loss": "1.5", "val/loss": ""},
    ]


def test_every_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=0)
    for step in range(1, 4):
        metrics.log_metrics({"a": float(step)}, step)
        assert len(rows(tmp_path / "metrics.csv")) == step


def test_a_resumed_file_keeps_what_was_before_the_checkpoint_and_replaces_the_rest(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=0)
    for step in range(1, 6):
        first.log_metrics({"a": float(step)}, step)
    second = MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=3)
    second.log_metrics({"a": 40.0}, 4)
    assert [(row["step"], row["a"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("1", "1.0"), ("2", "2.0"), ("3", "3.0"), ("4", "40.0"),
    ]  # fmt: skip


def test_a_fresh_run_starts_an_empty_file(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=0).log_metrics({"a": 1.0}, 1)
    MetricsFile(tmp_path / "metrics.csv", keep_up_to_step=0)
    assert rows(tmp_path / "metrics.csv") == []


def test_a_last_row_cut_off_by_a_kill_is_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n1,1.0,2.0\n2,2.0,3.0\n3,3")
    MetricsFile(path, keep_up_to_step=2)
    assert [row["step"] for row in read_rows(path)] == ["1", "2"]
