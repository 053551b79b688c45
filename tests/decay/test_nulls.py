"""Shuffled and reversed chunks: what they keep, what they destroy, and how far the null can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from chronomoe.decay.arm import measure_arm
from chronomoe.decay.documented import ols_slope
from chronomoe.decay.noise import ar1_noise
from chronomoe.decay.nulls import against_shuffles, reversed_in_time, shuffled
from chronomoe.decay.series import Series
from scripts.decay_rates import shuffle_alarms

K = np.arange(50)


def mean_slope(arm: Sequence[Series]) -> float:
    return float(np.mean([ols_slope(series.observed_K) for series in arm]))


def decaying(prompts: int = 10) -> list[Series]:
    rng = np.random.default_rng(0)
    curve = 0.2 + 0.4 * np.exp(-K / 8)
    return [Series(curve + 0.03 * ar1_noise(rng, (50,), 0.2), str(prompt), 0) for prompt in range(prompts)]


def test_shuffling_keeps_the_chunks_that_were_observed() -> None:
    arm = [
        Series(K.astype(float), "a", 0, "eos"),
        Series(K.astype(float), "b", 1, "K", K >= 20),
        Series(np.ones(3), "c", 0, "K", np.ones(3, bool)),
    ]
    first, second = shuffled(arm, np.random.default_rng(0))
    assert sorted(first.value_K) == K.tolist() != first.value_K.tolist()
    assert sorted(second.value_K) == list(range(20))
    assert (first.ending, second.ending) == ("stopped", "censored")
    assert [series.value_K.tolist() for series in reversed_in_time(arm)][1] == list(range(19, -1, -1))


def test_a_decay_stands_out_among_shuffles_whose_slopes_are_centred_on_zero() -> None:
    found = against_shuffles(decaying(), mean_slope, np.random.default_rng(0), 199)
    assert found.p == 1 / 200
    assert abs(found.mean) < 0.05 * abs(found.observed)
    assert found.low < 0 < found.high
    assert found.observed < found.low


def test_the_verdict_on_reversed_decay_is_not_decay() -> None:
    forwards, backwards = (
        measure_arm(arm, 0.0, 0.7, np.random.default_rng(0)).pooled
        for arm in (decaying(), reversed_in_time(decaying()))
    )
    assert forwards is not None
    assert backwards is not None
    assert forwards.verdict == "exponential"
    assert forwards.fitted.at(0) > forwards.fitted.at(49)
    assert backwards.fitted.at(0) < backwards.fitted.at(49)


def test_shuffles_hold_their_level_without_persistence_and_lose_it_with() -> None:
    assert shuffle_alarms(0.0) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert shuffle_alarms(0.6) > 0.15


def test_what_never_moves_is_like_its_shuffles() -> None:
    arm = [Series(np.full(20, 0.1), "a", 0)]
    assert against_shuffles(arm, mean_slope, np.random.default_rng(0), 99).p == pytest.approx(1)
