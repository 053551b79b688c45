from __future__ import annotations

import sys
from pathlib import Path

import pytest
from made_sweeps import write_sweep

from chronomoe import report
from chronomoe.entry import guarded

CONFIG = "model:\n  num_layers: 2\n  num_experts: 1\nchrono:\n  law: 'off'\ndata:\n  source: stdlib\nseed: 1\n"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    guarded(report.main)


def test_the_command_writes_figures_and_report_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,8.3\n2,8.1\n")
    call(monkeypatch, f"run={tmp_path}")
    written = [tmp_path / "figures" / "loss.png", tmp_path / "report.html"]
    assert all(path.is_file() for path in written)
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]


def test_a_folder_of_runs_gets_one_page_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = write_sweep(tmp_path / "swept", axes={"chrono.pressure_scale": ("0.1",)}, seeds=(1, 2), steps=40)
    call(monkeypatch, f"runs={folder}")
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written[0] == folder / "report.html"
    assert all(path.is_file() for path in written)
    assert {path.suffix for path in written[1:]} == {".png", ".svg"}
    assert "<title>Sweep swept</title>" in written[0].read_text()


@pytest.mark.parametrize("name", ["metrics.csv", "routing.npz", "summary.json"])
def test_an_unreadable_run_is_named_with_its_fault(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = write_sweep(tmp_path / "swept", axes={"chrono.pressure_scale": ("0.1",)}, seeds=(1,), steps=40)
    broken = next(folder.glob(f"runs/*/{name}"))
    broken.write_text("step,x\n1,no number\n")
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, f"runs={folder}")
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert message.startswith(f"error: {broken}")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "run="),
        (["ru=x"], "ru"),
        (["run="], "run="),
        (["run=a", "runs=b"], "give run="),
        (["run=nowhere"], "config.yaml"),
        (["runs=nowhere"], "no such folder"),
    ],
    ids=["nothing", "other key", "no folder", "two", "no run", "no runs"],
)
def test_a_wrong_argument_ends_with_one_line_and_exit_code_two(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, *arguments)
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert named in message
    assert message.count("\n") == 1
