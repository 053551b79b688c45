"""Cliffs: how often noise and smooth decay are called one, how often a step is, and what is printed beside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.decay.cliffs import DRAWS, WINDOW, fall, find_cliffs, permutation_p, surrogate_draws, surrogate_p
from chronomoe.decay.noise import ar1_noise
from scripts.decay_rates import cliff_rates, linear_null_alarms

K = np.arange(50)


@given(st.integers(10, 40), st.integers(0, 1000))
def test_the_statistic_is_its_definition(chunks: int, seed: int) -> None:
    value = np.random.default_rng(seed).normal(size=chunks)
    drops = {k: value[k - WINDOW : k].mean() - value[k : k + WINDOW].mean() for k in range(WINDOW, chunks - WINDOW + 1)}
    step = np.diff(value)
    deviation = 1.4826 * np.median(np.abs(step - np.median(step)))
    statistic, place = fall(value[None])
    assert place[0] == max(drops, key=drops.__getitem__)
    assert statistic[0] == pytest.approx(max(drops.values()) / deviation)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6])
def test_noise_is_called_a_cliff_at_no_more_than_its_level(phi: float) -> None:
    assert cliff_rates("constant", phi, arms=20).surrogates <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("name", ["line, total -12", "exponential 6, tau 5", "exponential 6, tau 15"])
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6])
def test_smooth_decay_is_called_a_cliff_in_at_most_five_percent(name: str, phi: float) -> None:
    assert cliff_rates(name, phi, arms=5).surrogates <= 0.05


@pytest.mark.parametrize(
    ("name", "phi", "specified"),
    [("step 5", 0.0, 0.97), ("step 5", 0.3, 0.88), ("step 5", 0.6, 0.81), ("step 3", 0.0, 0.48), ("step 3", 0.3, 0.25)],
)
def test_a_step_is_found_at_least_as_often_as_specified(name: str, phi: float, specified: float) -> None:
    rates = cliff_rates(name, phi, arms=10)
    assert rates.surrogates >= specified - 4 * np.sqrt(2 * specified * (1 - specified) / 200)
    assert rates.place_covered >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)


def test_a_null_of_lines_would_call_fast_decay_a_cliff() -> None:
    assert linear_null_alarms(0.0) > 0.3


def test_permutations_hold_their_level_without_persistence_and_lose_it_with() -> None:
    assert cliff_rates("constant", 0.0).permutation <= 0.1
    assert cliff_rates("constant", 0.6).permutation > 0.3


def test_permutations_are_flagged_where_they_are_invalid() -> None:
    rng = np.random.default_rng(0)
    values = list(ar1_noise(rng, (3, 50), 0.3))
    assert all(cliff is not None and not cliff.permutation_valid for cliff in find_cliffs(values, 0.21, 1.0, rng))
    assert all(cliff is not None and cliff.permutation_valid for cliff in find_cliffs(values, 0.2, 1.0, rng))


def test_a_cliff_is_found_where_it_is_and_only_if_it_is_large() -> None:
    rng = np.random.default_rng(1)
    noise = 0.02 * ar1_noise(rng, (6, 50), 0.2)
    values = list(0.6 - 0.15 * (np.arange(6)[:, None] < 2) * (K >= 23) + noise)
    cliffs = find_cliffs(values, 0.2, 1.0, rng)
    assert [cliff is not None and cliff.found for cliff in cliffs] == [True, True, False, False, False, False]
    for cliff in cliffs[:2]:
        assert cliff is not None
        assert cliff.place == pytest.approx(23, abs=1)
        assert cliff.place_low <= 23 <= cliff.place_high
        assert cliff.drop == pytest.approx(0.15, abs=0.04)
    assert not any(cliff is not None and cliff.found for cliff in find_cliffs(values, 0.2, 2.0, rng))


def test_one_cliff_among_sixty_series_can_survive_the_correction() -> None:
    assert surrogate_draws(20) == DRAWS
    assert 60 / (1 + surrogate_draws(60)) <= 0.05 < 60 / (1 + DRAWS)
    rng = np.random.default_rng(2)
    values = list(0.02 * ar1_noise(rng, (60, 50), 0.2) + 0.6 - 0.4 * (np.arange(60)[:, None] == 7) * (K >= 23))
    assert [index for index, cliff in enumerate(find_cliffs(values, 0.2, 1.0, rng)) if cliff and cliff.found] == [7]


def test_short_series_are_left_out_and_still_ones_are_no_cliff() -> None:
    rng = np.random.default_rng(3)
    cliffs = find_cliffs([np.ones(9), np.ones(10), np.full(50, 0.1)], 0.0, 1.0, rng)
    assert cliffs[0] is None
    for cliff in cliffs[1:]:
        assert cliff is not None
        assert not cliff.found
        assert cliff.p == cliff.permutation_p == 1.0


def test_a_step_without_noise_is_a_cliff_and_a_line_without_noise_is_none() -> None:
    rng = np.random.default_rng(4)
    step, line = find_cliffs([0.6 - 0.4 * (K >= 20), 0.6 - 0.01 * K], 0.0, 0.5, rng)
    assert step is not None
    assert line is not None
    assert (step.found, step.place, line.found) == (True, 20, False)


@pytest.mark.parametrize("block", [1, 5])
def test_a_permutation_is_one_of_blocks_after_a_line_and_before_another(block: int) -> None:
    """28 chunks are five blocks of 5 and one of 3. Both p are estimates from 999 draws."""
    rng = np.random.default_rng(0)
    value = np.sin(np.arange(28) / 4.5) + 1.5 * rng.normal(size=28)

    def cusum(series: np.ndarray) -> float:
        rest = series - np.polyval(np.polyfit(np.arange(28), series, 1), np.arange(28))
        return float(np.abs(np.cumsum(rest)).max() / rest.std())

    rest = value - np.polyval(np.polyfit(np.arange(28), value, 1), np.arange(28))
    blocks = [rest[start : start + block] for start in range(0, 28, block)]
    shuffles = [np.concatenate([blocks[index] for index in rng.permutation(len(blocks))]) for _ in range(DRAWS)]
    by_hand = np.mean([cusum(series) >= cusum(value) - 1e-9 for series in shuffles])
    assert 0.02 < by_hand < 0.98
    assert permutation_p(value, block, rng) == pytest.approx(
        by_hand, abs=4 * np.sqrt(2 * by_hand * (1 - by_hand) / DRAWS)
    )


def test_p_is_never_zero() -> None:
    value = -100.0 * (K >= 25) + np.random.default_rng(0).normal(size=50)
    assert surrogate_p(value, 0.0, np.random.default_rng(0), 99) == 0.01
