"""Coherence and loss: what drifts together by itself is not called associated, what is planted is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from chronomoe.study.association import (
    SHUFFLES,
    Panel,
    associate,
    means_between,
    of_changes,
    of_ends,
    over_time,
    read_panel,
)
from chronomoe.study.run import Curve, Run

RNG = np.random.default_rng(0)


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean([np.corrcoef(x[:, c], y[:, c])[0, 1] for c in range(x.shape[1])]))


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 4))
def test_measure_and_p_are_their_definitions(seed: int, seeds: int, columns: int) -> None:
    x, y = np.random.default_rng(seed).normal(size=(2, seeds, columns))
    found = associate(x, y)
    assert found is not None
    assert found.r == pytest.approx(by_hand(x, y))
    null = np.array([by_hand(x, y[list(order)]) for order in itertools.permutations(range(seeds))])
    assert found.p == pytest.approx((np.abs(null) >= abs(found.r) - 1e-9).mean())
    assert (found.null_mean, found.null_sd) == pytest.approx((0, null.std()), abs=1e-9)
    assert (found.seeds, found.columns) == (seeds, columns)


def drifting_panel(rng: np.random.Generator, seeds: int = 5, evaluations: int = 8, shared: float = 0.0) -> Panel:
    """Coherence and loss fall as in training; each run strays from the common course as a random walk."""
    time = np.arange(evaluations)
    walks = rng.normal(size=(3, seeds, evaluations)).cumsum(axis=-1) * np.exp(-time / 4)
    coherence = 0.1 * np.exp(-time / 3) + 0.005 * (walks[0] + shared * walks[2])
    loss = 4 + 4 * np.exp(-time / 3) + 0.03 * (walks[1] + shared * walks[2])
    return Panel(list(range(seeds)), coherence, loss)


def test_series_that_only_drift_together_are_not_called_associated() -> None:
    rng = np.random.default_rng(1)
    panels = [drifting_panel(rng) for _ in range(600)]
    assert np.mean([over_time(panel) for panel in panels]) > 0.8  # the plain correlation calls all of them so
    for of in (of_changes, of_ends):
        p = np.array([of([panel]).p for panel in panels])
        assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.03)
        assert np.mean(p <= 0.25) == pytest.approx(0.25, abs=0.06)


def test_arms_that_share_seeds_are_not_counted_twice() -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        one = drifting_panel(rng)
        arms = [Panel(one.seeds, one.coherence_SK + arm, one.loss_SK - arm) for arm in range(4)]  # the same runs again
        found.append(of_changes(arms).p)
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_a_planted_association_is_found() -> None:
    rng = np.random.default_rng(3)
    found = [of_changes([drifting_panel(rng, shared=2.0)]) for _ in range(100)]
    assert np.mean([association.p <= 0.05 for association in found]) > 0.8
    assert np.mean([association.r for association in found]) > 0.5


def test_arms_together_find_what_one_alone_does_not() -> None:
    rng = np.random.default_rng(4)
    alone, together = [], []
    for _ in range(60):
        arms = [drifting_panel(rng, shared=0.6) for _ in range(6)]
        alone.append(of_changes(arms[:1]).p <= 0.05)
        together.append(of_changes(arms).p <= 0.05)
    assert np.mean(together) > np.mean(alone) + 0.15


def test_pooled_arms_are_read_at_the_seeds_they_share() -> None:
    one, two = drifting_panel(RNG, 5), drifting_panel(RNG, 4)
    two = Panel([9, 3, 1, 0], two.coherence_SK, two.loss_SK)
    found = of_ends([one, two])
    expected = associate(
        np.stack([one.coherence_SK[[0, 1, 3], -1], two.coherence_SK[[3, 2, 1], -1]], axis=1),
        np.stack([one.loss_SK[[0, 1, 3], -1], two.loss_SK[[3, 2, 1], -1]], axis=1),
    )
    assert found == expected


def test_without_siblings_or_change_nothing_is_said() -> None:
    assert associate(np.ones((1, 3)), np.ones((1, 3))) is None
    assert associate(np.full((4, 2), 0.1), RNG.normal(size=(4, 2))) is None
    assert of_changes([]) is None
    assert of_changes([drifting_panel(RNG, evaluations=1)]) is None


def test_many_seeds_draw_their_null_and_p_is_never_zero() -> None:
    x = RNG.normal(size=(12, 3))
    found = associate(x, x)
    assert found is not None
    assert found.r == pytest.approx(1)
    assert found.p == 1 / (SHUFFLES + 1)
    assert associate(x, x) == found


def run_with(seed: int, evaluated: list[int], coherent: list[int]) -> Run:
    step = np.arange(1.0, 13.0)
    columns = {
        "step": step,
        "val/loss": np.where(np.isin(step, evaluated), 10 * step + seed, np.nan),
        "chrono/coherence": np.where(np.isin(step, coherent), step + seed, np.nan),
    }
    return made_run(seed=seed, metrics=columns)


def test_a_panel_holds_the_evaluations_of_all_runs() -> None:
    panel = read_panel({1: run_with(1, [4, 8, 12], list(range(1, 13))), 2: run_with(2, [4, 12], list(range(1, 13)))})
    assert panel is not None
    np.testing.assert_allclose(panel.loss_SK, [[41, 121], [42, 122]])
    np.testing.assert_allclose(panel.coherence_SK, [[2.5 + 1, 8.5 + 1], [2.5 + 2, 8.5 + 2]])


def test_without_coherence_there_is_no_panel() -> None:
    assert read_panel({1: run_with(1, [4], [2]), 2: run_with(2, [4], [])}) is None
    assert read_panel({1: run_with(1, [], [2])}) is None


@given(st.lists(st.integers(0, 30), unique=True).map(sorted), st.lists(st.integers(0, 30), unique=True).map(sorted))
def test_means_between_are_those_of_the_points_there(points: list[int], steps: list[int]) -> None:
    curve = Curve(np.array(points, np.int64), np.array(points, float) ** 2)
    found = means_between(curve, np.array(steps, np.int64))
    for value, low, high in zip(found, [-1, *steps], steps, strict=False):
        inside = [point**2 for point in points if low < point <= high]
        assert value == pytest.approx(np.mean(inside)) if inside else np.isnan(value)
