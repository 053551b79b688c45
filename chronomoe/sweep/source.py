"""Where the points of a sweep come from: a grid knows them all, a search draws the next from how the others ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from chronomoe.sweep.board import Board, Entry
from chronomoe.sweep.points import Point
from chronomoe.sweep.trials import Draw, Trials


class Source(Protocol):
    def known(self) -> list[Entry]:
        """The points there are before the sweep begins to work."""

    def next(self) -> Entry | None:
        """A further point; None if there is none, at least for now."""


class Grid:
    def __init__(self, board: Board, points: Sequence[Point]) -> None:
        board.total = len(points)
        self._points = points

    def known(self) -> list[Entry]:
        return [Entry(point, number=number) for number, point in enumerate(self._points)]

    def next(self) -> None:
        return None


class Search:
    """Trials that were drawn before, by this sweep or another in its storage, then new ones."""

    def __init__(self, board: Board, trials: Trials, make_point: Callable[[list[str]], Point]) -> None:
        board.total = trials.settings.trials or 0
        self._trials, self._make_point = trials, make_point
        self._known: set[int] = set()

    def known(self) -> list[Entry]:
        return [self._entry(draw) for draw in self._trials.drawn()]

    def next(self) -> Entry | None:
        """A new draw; after the last one those of other sweeps in this storage, which are watched to their end."""
        draw = self._trials.propose()
        if draw is None:
            draw = next((draw for draw in self._trials.drawn() if draw.number not in self._known), None)
        return None if draw is None else self._entry(draw)

    def _entry(self, draw: Draw) -> Entry:
        self._known.add(draw.number)
        entry = Entry(self._make_point(draw.overrides), number=draw.number, trial=draw.trial)
        if draw.trial is not None:
            self._trials.label(draw.trial, entry.point)
        return entry
