"""Spikes that were planted are counted, trends and warm-up are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.study.stability import HALF_WINDOW, SPIKE, grad_norm_tail, loss_spikes

N = 300
JUDGED = N - 2 * HALF_WINDOW


def falling(noise: float, seed: int = 0) -> np.ndarray:
    """A training loss with a steep start, as in a run's first steps."""
    return 4 + 4.5 * np.exp(-np.arange(N) / 15) + noise * np.random.default_rng(seed).normal(size=N)


def by_hand(loss: np.ndarray) -> float:
    steps = range(HALF_WINDOW, len(loss) - HALF_WINDOW)
    rest = {t: loss[t] - np.median(loss[t - HALF_WINDOW : t + HALF_WINDOW + 1]) for t in steps}
    spikes = 0
    for t in steps:
        near = [u for u in steps if abs(u - t) <= 50]
        bends = [abs(loss[u - 1] - 2 * loss[u] + loss[u + 1]) / np.sqrt(6) for u in near]
        scale = 1.4826 * max(np.median([abs(rest[u]) for u in near]), np.median(bends))
        spikes += rest[t] > SPIKE * scale
    return spikes / len(rest)


@given(st.integers(0, 10_000), st.integers(0, 5))
def test_the_share_is_its_definition(seed: int, planted: int) -> None:
    rng = np.random.default_rng(seed)
    loss = rng.normal(size=90)
    loss[rng.integers(0, 90, planted)] += 20
    assert loss_spikes(loss) == pytest.approx(by_hand(loss))


def test_planted_spikes_are_counted_wherever_the_loss_is() -> None:
    loss = falling(0.05)
    planted = [15, 60, 61, 150, 280]
    loss[planted] += 0.8
    assert loss_spikes(loss) == pytest.approx(len(planted) / JUDGED)


def test_a_fall_is_no_spike() -> None:
    loss = falling(0.05)
    loss[[60, 150]] -= 3
    assert loss_spikes(loss) == 0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.2])
def test_noise_on_a_steep_trend_hardly_ever_counts(noise: float) -> None:
    assert np.mean([loss_spikes(falling(noise, seed)) for seed in range(20)]) < 2e-4


def test_each_part_is_judged_by_its_own_noise() -> None:
    noise = 0.5 * np.exp(-np.arange(N) / 60)
    loss = 4 + noise * np.random.default_rng(1).normal(size=N)
    loss[250] += 0.15  # small beside the early noise
    assert loss_spikes(loss) == pytest.approx(1 / JUDGED)


def test_a_new_level_is_no_spike() -> None:
    loss = falling(0.02)
    loss[150:] += 1
    assert loss_spikes(loss) < 0.03


def test_too_few_steps_are_not_judged() -> None:
    assert loss_spikes(np.ones(39)) is None
    assert loss_spikes(np.ones(40)) == 0
    assert grad_norm_tail(np.ones(21)) is None
    assert grad_norm_tail(np.ones(23)) == 1


def test_the_tail_is_a_quantile_over_the_median_after_the_warm_up() -> None:
    norm = np.random.default_rng(0).exponential(size=1000)
    expected = np.sort(norm[100:])
    assert grad_norm_tail(norm) == pytest.approx(np.quantile(expected, 0.99) / np.median(expected))
    assert grad_norm_tail(np.concatenate([1e6 * np.ones(100), norm[100:]])) == grad_norm_tail(norm)


@given(st.floats(1e-3, 1e3))
def test_neither_depends_on_the_unit(scale: float) -> None:
    loss = falling(0.05)
    loss[100] += 1
    assert loss_spikes(scale * loss) == loss_spikes(loss)
    assert grad_norm_tail(scale * np.abs(loss)) == pytest.approx(grad_norm_tail(np.abs(loss)))


def test_a_gradient_of_zero_has_no_tail() -> None:
    assert grad_norm_tail(np.zeros(100)) is None
