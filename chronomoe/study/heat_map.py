"""Arms on a grid of two settings: a table for every choice of the other settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from chronomoe.study.shown_arms import ShownArm, sort_values, words_of


class HeatMap(NamedTuple):
    row_key: str
    column_key: str
    rows: list[str]
    columns: list[str]
    where: str
    """What all its arms share beside the two settings; empty where that is everything."""
    arms: list[list[int | None]]
    """[rows][columns] -> index of the arm; None where there is none."""


def heat_maps(shown: Sequence[ShownArm]) -> list[HeatMap]:
    """Over the two settings with most values, the longer one down; none without two settings of two values or more."""
    counts: dict[str, int] = {}
    for key in dict.fromkeys(key for one in shown for key in words_of(one.arm.name)):
        partners = [one for one in shown if key in words_of(one.arm.name) and len(words_of(one.arm.name)) > 1]
        counts[key] = len({one.values[key] for one in partners})
    row_key, column_key = [*sorted((key for key in counts if counts[key] > 1), key=lambda key: -counts[key]), "", ""][
        :2
    ]
    if not column_key:
        return []
    slices: dict[str, list[ShownArm]] = {}
    for one in shown:
        if row_key in one.values and column_key in one.values:
            others = {key: value for key, value in one.values.items() if key not in (row_key, column_key)}
            slices.setdefault(" ".join(f"{key}={value}" for key, value in others.items()), []).append(one)
    return [one_map(row_key, column_key, where, members) for where, members in slices.items()]


def one_map(row_key: str, column_key: str, where: str, members: Sequence[ShownArm]) -> HeatMap:
    rows, columns = (
        sort_values(list(dict.fromkeys(one.values[key] for one in members))) for key in (row_key, column_key)
    )
    places = {(one.values[row_key], one.values[column_key]): one.index for one in members}
    return HeatMap(
        row_key, column_key, rows, columns, where, [[places.get((row, column)) for column in columns] for row in rows]
    )
