"""What a person sees: a line a point without a terminal, a table that is redrawn with one."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronomoe.sweep.board import Board, Entry
from chronomoe.sweep.points import Point
from chronomoe.sweep.screen import ROWS, Screen, duration
from chronomoe.sweep.state import DONE, FAILED, RUNNING, WAITING


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def board(configure: Callable[..., Any]) -> Callable[..., Board]:
    """board((name, status), …): with that many points."""
    config = configure()

    def board(*points: tuple[str, str]) -> Board:
        entries = [
            Entry(Point(overrides=[name], config=config, run_dir=Path("r")), status=status, number=number)
            for number, (name, status) in enumerate(points)
        ]
        return Board(name="s", objectives=["val_loss"], axes=["seed"], jobs=1, entries=entries, total=len(entries))

    return board


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "160", "LINES": "50"}.items():
        monkeypatch.setenv(name, value)
    return terminal


@pytest.mark.parametrize("colour", ["", "1"], ids=["plain", "FORCE_COLOR"])
def test_without_a_terminal_every_point_that_ends_is_one_line(
    board: Callable[..., Board], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", colour)
    known = board(("optim.betas=[0.8,0.9]", DONE), ("seed=2", FAILED), ("seed=3", RUNNING))
    known.entries[0].summary["val_loss"] = 2.34567
    known.entries[1].error = "train/loss is nan at step 3 [bold]"
    with Screen(known) as screen:
        for entry in known.entries[:2]:
            screen.ended(entry)
        screen.refresh()
        screen.say("a long line " * 20)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "[2/3] optim.betas=[0.8,0.9]: done, val_loss 2.346",
        "[2/3] seed=2: failed: train/loss is nan at step 3 [bold]",
        "a long line " * 20,
    ]


def test_on_a_terminal_the_table_shows_counts_the_best_point_and_what_runs(
    board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = board(("seed=1", DONE), ("seed=[2]", RUNNING), ("seed=3", FAILED), ("seed=4", WAITING))
    known.entries[0].summary |= {"val_loss": 2.34567, "wall_seconds": 61.0}
    known.entries[2].error = "out of [memory]"
    terminal = open_terminal(monkeypatch)
    with Screen(known) as screen:
        screen.ended(known.entries[0])
        screen.ended(known.entries[2])
    shown = terminal.getvalue()
    for part in ("1/4 done", "1 running", "1 failed", "best val_loss 2.3457 (seed=1)", "2 min 02 s left"):
        assert part in shown
    for part in ("seed=[2]", "elsewhere", "out of [memory]", "1 min 01 s"):
        assert part in shown


def test_a_thousand_points_fit_the_screen(board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch) -> None:
    known = board(*((f"seed={number}", DONE) for number in range(1000)))
    terminal = open_terminal(monkeypatch)
    with Screen(known) as screen:
        for entry in known.entries:
            screen._ended.append(entry)
    assert terminal.getvalue().rpartition("point")[2].count("seed=") == ROWS


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7261, "2 h 01 min")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
