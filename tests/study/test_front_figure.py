"""The Pareto front, against the long way round, and the picture of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.study.front_figure import front, write_front
from chronomoe.study.pairs import Effect

places = st.tuples(st.integers(0, 5), st.integers(0, 5))


def test_a_point_beaten_in_both_is_not_on_the_front_and_one_better_in_either_is() -> None:
    points = {"fast": (1.0, 3.0), "slow": (3.0, 1.0), "between": (2.0, 2.0), "beaten": (2.0, 3.0), "tied": (1.0, 3.5)}
    assert front(points) == ["fast", "slow", "between"]


def test_equal_points_are_on_the_front_together() -> None:
    assert front({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == ["a", "b"]


@given(points=st.dictionaries(st.text(min_size=1, max_size=3), places, min_size=1, max_size=8))
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(points: dict[str, tuple[int, int]]) -> None:
    best = front(points)
    assert best
    for name, (x, y) in points.items():
        beaten = any(points[b][0] <= x and points[b][1] <= y and points[b] != (x, y) for b in best)
        assert (name in best) != beaten


def test_the_picture_shows_every_arm_with_both_numbers(tmp_path: Path) -> None:
    effect = Effect(n=5, mean=1.0, mean_difference=0.1, ci_low=0.0, ci_high=0.2, wins=2)
    loss = {name: effect._replace(mean_difference=d) for name, d in {"off": 0.0, "sign": -0.1, "new": 0.1}.items()}
    balance = {name: effect._replace(mean=m) for name, m in {"off": 2.0, "sign": 0.5}.items()}
    path = write_front(loss, balance, "off", tmp_path / "compare.png")
    assert matplotlib.image.imread(path).std() > 0.01
