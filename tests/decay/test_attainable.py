"""The range a pressure can have, against the reference's closed forms; shares that add up; inputs that stand still."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.decay.attainable import Inputs, attainable_range, freeze, variance_shares


def terms(inputs: Inputs) -> dict[str, np.ndarray]:
    """Of the documented mid pressure."""
    return {
        "margin": 0.4 * np.tanh(1 - inputs["m"]),
        "transition": 0.3 * np.tanh(inputs["q"]),
        "proximity": 0.2 * np.tanh(1 / (1 + inputs["d"])),
        "coherence": 0.1 * np.tanh(inputs["dR"]),
    }


def pressure(inputs: Inputs) -> np.ndarray:
    return np.clip(sum(terms(inputs).values()), -1, 1)


def spanning(low: float, high: float) -> np.ndarray:
    """1st and 99th percentile are the ends."""
    return np.repeat([low, high], 500)


def literals() -> dict[str, np.ndarray]:
    return {"m": spanning(0, 1), "q": np.full(1000, 0.8), "d": np.full(1000, 0.2), "dR": spanning(-1e-3, 1e-3)}


def test_with_literals_half_is_out_of_reach() -> None:
    start = float(pressure({"m": np.zeros(1), "q": np.array([0.8]), "d": np.array([0.2]), "dR": np.zeros(1)})[0])
    assert start == pytest.approx(0.640301, abs=1e-6)
    found = attainable_range(pressure, literals(), start)
    assert not found.half_reachable
    assert found.low == pytest.approx(0.335663 - 1e-4, abs=1e-6)
    assert found.frozen == ["q", "d"]


def test_even_wild_coherence_leaves_literals_the_published_range() -> None:
    found = attainable_range(pressure, {**literals(), "dR": spanning(-1, 1)}, 0.640301)
    assert (found.low, found.high) == (pytest.approx(0.259504, abs=1e-6), pytest.approx(0.716460, abs=1e-6))


def test_measured_inputs_reach_half() -> None:
    measured = {"m": spanning(0, 1), "q": spanning(0, 1), "d": spanning(0, 1e6), "dR": spanning(-1, 1)}
    found = attainable_range(pressure, measured, 0.64)
    assert found.half_reachable
    assert found.frozen == []
    assert found.low == pytest.approx(-0.076159, abs=1e-6)
    assert found.high == pytest.approx(0.761594 - 0.2 * np.tanh(1) + 0.2 * np.tanh(1.0), abs=1e-6)


@given(st.integers(0, 1000))
def test_shares_of_terms_add_up_to_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {name: rng.uniform(0, 1, 200) for name in ("m", "q", "d", "dR")}
    shares = variance_shares(terms(inputs), pressure(inputs))
    assert shares is not None
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["clipping"] == pytest.approx(0, abs=1e-9)


def test_what_clipping_takes_away_is_a_share_of_its_own() -> None:
    parts = {"a": np.linspace(0, 2, 100)}
    shares = variance_shares(parts, np.clip(parts["a"], -1, 1))
    assert shares is not None
    assert shares["clipping"] < -0.1
    assert sum(shares.values()) == pytest.approx(1)


def test_the_share_of_the_only_term_that_moves_is_one() -> None:
    inputs = {"m": np.linspace(0, 1, 100), "q": np.full(100, 0.8), "d": np.full(100, 0.2), "dR": np.zeros(100)}
    shares = variance_shares(terms(inputs), pressure(inputs))
    assert shares is not None
    assert shares["margin"] == pytest.approx(1)
    ablation = freeze(pressure, inputs, np.arange(100))
    assert ablation["m"] == (0.0, 0.0)
    for name in ("q", "d", "dR"):
        assert ablation[name] == pytest.approx((1.0, 1.0))


def test_a_trend_is_gone_with_its_input_and_noise_with_its_own() -> None:
    rng = np.random.default_rng(0)
    chunk = np.tile(np.arange(50), 20)
    inputs = {"m": chunk / 50, "q": rng.uniform(0, 1, 1000), "d": np.full(1000, 0.2), "dR": np.zeros(1000)}
    ablation = freeze(pressure, inputs, chunk)
    assert ablation["m"].slope_ratio == pytest.approx(0, abs=0.05)
    assert ablation["q"].slope_ratio == pytest.approx(1, abs=0.05)
    assert ablation["q"].variance_ratio is not None
    assert ablation["q"].variance_ratio < 1


def test_a_pressure_that_never_moves_has_no_shares() -> None:
    inputs = {name: np.full(50, 0.3) for name in ("m", "q", "d", "dR")}
    assert variance_shares(terms(inputs), pressure(inputs)) is None
    assert freeze(pressure, inputs, np.arange(50))["m"] == (None, None)
    assert attainable_range(pressure, inputs, 0.6).frozen == ["m", "q", "d", "dR"]
