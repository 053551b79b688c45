from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import made_run

from chronomoe.settings import InputError
from chronomoe.study.run import Run
from chronomoe.study.sweep_points import Point, count_status, unfinished_points


def a_run(name: str, **summary: object) -> Run:
    run = made_run(point=f"chrono.x={name}", name=f"runs/{name}", metrics={})
    run.summary.clear()
    run.summary.update(summary)
    return run


def test_runs_speak_for_themselves_and_the_table_of_results_for_points_without_a_run(tmp_path: Path):
    (tmp_path / "results.csv").write_text(
        "overrides,status,run_dir,val_loss,error\n"
        "chrono.x=a,running,elsewhere/runs/a,,\n"
        "chrono.x=b,done,elsewhere/runs/b,4.2,\n"
        "chrono.x=c,waiting,elsewhere/runs/c,,\n"
        'chrono.x=d,failed,elsewhere/runs/d,,"out of memory, or so"\n'
    )
    going, failed = a_run("a"), a_run("e", status="failed", error="loss is nan")
    assert unfinished_points(tmp_path, [going, failed], [a_run("b", status="done")]) == [
        Point("chrono.x=e", "failed", "runs/e", "loss is nan", None),
        Point("chrono.x=d", "failed", "elsewhere/runs/d", "out of memory, or so", None),
        Point("chrono.x=a", "running", "runs/a", "", None),
        Point("chrono.x=c", "waiting", "elsewhere/runs/c", "", None),
    ]


def test_a_folder_without_results_has_the_runs_below_it(tmp_path: Path):
    (only,) = unfinished_points(tmp_path, [a_run("a")], [])
    assert only.status == "unfinished"
    assert unfinished_points(tmp_path, [], []) == []


def test_unreadable_results_are_named(tmp_path: Path):
    (tmp_path / "results.csv").write_bytes(b"overrides,status,run_dir\n\xff\xfe,done,x\n")
    with pytest.raises(InputError, match=r"results\.csv"):
        unfinished_points(tmp_path, [], [])


def test_points_are_counted_by_status():
    points = [Point("", status, "", "", None) for status in ("failed", "waiting", "waiting")]
    assert count_status(points) == "1 failed, 2 waiting"
