"""The pressures against the documented numbers, their bounds and signs, and what they decide."""

from __future__ import annotations

import inspect
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chronomoe.session import documented, pressures
from chronomoe.session.pressures import (
    Inputs,
    Pressures,
    fast,
    mid,
    next_rho,
    pause_reason,
    press,
    scaled_entropy,
    slow,
)
from chronomoe.settings import RunFailed

UNIT = st.floats(0, 1)
CHANGE = st.floats(-1, 1)
DISTANCE = st.floats(0, 100)
SCALE = st.sampled_from(pressures.ENTROPY_SCALES)
INPUTS = st.builds(
    Inputs,
    Hn=UNIT,
    m_r=UNIT,
    dR=CHANGE,
    m=UNIT,
    q=UNIT,
    d_meso=DISTANCE,
    d_macro=DISTANCE,
    c_s=UNIT,
    v=st.none() | st.floats(0, 50),
)
PLAIN = Inputs(Hn=0.8, m_r=0.1, dR=0.01, m=0.3, q=0.4, d_meso=1.0, d_macro=1.2, c_s=0.4, v=0.2)


def with_net(P_net: float, P_mid: float = 0.5) -> Pressures:
    return Pressures(0.0, P_mid, 0.0, 0.2, 0.5, 0.3, P_net)


def test_documented_numbers() -> None:
    assert mid(0, 0.8, 0.2, 0) == pytest.approx(0.640301, abs=1e-6)
    assert slow(0.5, 0.1, 0) == pytest.approx(0.108104, abs=1e-6)
    assert mid(1, 0.5, 0.5, 0) == pytest.approx(0.255192, abs=1e-6)
    assert slow(0.5, 0.5, 0) == pytest.approx(0.087417, abs=1e-6)
    assert fast(scaled_entropy(0.9487, "norm_half", 4), 0, 0) == pytest.approx(-0.237175, abs=1e-6)


@pytest.mark.parametrize(("Hn", "P_net"), [(0.9487, 0.288931), (0.5334, 0.309696)])
def test_documented_net_pressure(Hn: float, P_net: float) -> None:
    inputs = Inputs(Hn=Hn, m_r=0, dR=0, m=0, **documented.CONSTANTS)
    assert press(inputs, rho=0, entropy_scale="norm_half", num_experts=4).P_net == pytest.approx(P_net, abs=1e-6)


def test_attainable_range_of_the_middle_pressure() -> None:
    assert mid(1, 0.8, 0.2, 0) == pytest.approx(0.335663, abs=1e-6)
    assert mid(1, 0.8, 0.2, -1) == pytest.approx(0.259504, abs=1e-6)
    assert mid(0, 0.8, 0.2, 1) == pytest.approx(0.716460, abs=1e-6)
    assert mid(1, 0, math.inf, -1) == pytest.approx(-0.076159, abs=1e-6)
    assert mid(0, 1, 0, 1) == pytest.approx(0.761594, abs=1e-6)
    assert mid(0, 0.8, 0.2, 0) / 2 < mid(1, 0.8, 0.2, 0), "with the prototype's constants no half-life can be reached"


def test_rule_one_cannot_fire_on_normalised_entropy() -> None:
    assert fast(1.0, 0, -1) == pytest.approx(-0.6523, abs=1e-4)
    assert fast(0.5, 0, -1) == pytest.approx(-0.4023, abs=1e-4)


@given(INPUTS, UNIT, SCALE, st.integers(2, 512))
def test_pressures_and_weights_stay_in_their_bounds(inputs: Inputs, rho: float, scale: str, num_experts: int) -> None:
    found = press(inputs, rho=rho, entropy_scale=scale, num_experts=num_experts)
    assert all(-1 <= getattr(found, name) <= 1 for name in ("P_fast", "P_mid", "P_slow", "P_net"))
    assert 0 <= found.w_fast <= 0.2
    assert 0.5 <= found.w_mid <= 1
    assert 0 <= found.w_slow <= 0.3
    net = found.w_fast * found.P_fast + found.w_mid * found.P_mid + found.w_slow * found.P_slow
    assert found.P_net == pytest.approx(max(-1, min(1, net)))


@given(INPUTS, st.sampled_from([("m", -1), ("q", 1), ("dR", 1), ("d_meso", -1)]), UNIT)
def test_the_middle_pressure_falls_in_margin_and_distance_and_rises_in_the_rest(
    inputs: Inputs, signal: tuple[str, int], other: float
) -> None:
    name, sign = signal
    assume(abs(getattr(inputs, name) - other) > 1e-3)
    one, two = (
        press(i, rho=0, entropy_scale="norm", num_experts=8).P_mid for i in (inputs, inputs._replace(**{name: other}))
    )
    assert (two - one) * sign * (other - getattr(inputs, name)) > 0


@given(INPUTS, UNIT, SCALE)
def test_the_fast_pressure_falls_in_entropy(inputs: Inputs, Hn: float, scale: str) -> None:
    assume(abs(inputs.Hn - Hn) > 1e-6)
    one, two = (press(i, rho=0, entropy_scale=scale, num_experts=8).P_fast for i in (inputs, inputs._replace(Hn=Hn)))
    assert (two - one) * (Hn - inputs.Hn) < 0


@given(INPUTS, st.floats(0, 5))
def test_the_penalty_never_raises_the_slow_pressure(inputs: Inputs, more: float) -> None:
    v = inputs.v or 0.0
    assert slow(inputs.c_s, inputs.d_macro, v + more) <= slow(inputs.c_s, inputs.d_macro, v)


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, x) for n in Inputs._fields for x in (math.nan, math.inf, None) if (n, x) != ("v", None)],
)
def test_a_signal_without_a_value_is_an_error_that_names_it(name: str, value: float | None) -> None:
    with pytest.raises(RunFailed, match=f"signal {name} "):
        press(PLAIN._replace(**{name: value}), rho=0, entropy_scale="norm", num_experts=8)


def test_a_deleted_penalty_is_a_formula_without_it() -> None:
    found = press(PLAIN._replace(v=None), rho=0, entropy_scale="norm", num_experts=8)
    assert found.P_slow == pytest.approx(0.4 * 0.3 * math.tanh(1 / 2.2))


def test_no_signal_has_a_default() -> None:
    assert Inputs._field_defaults == {}
    for function in (fast, mid, slow, press, next_rho, documented.documented_inputs):
        assert all(p.default is p.empty for p in inspect.signature(function).parameters.values()), function.__name__


@pytest.mark.parametrize(
    ("P_fast", "P_net", "mode", "reason"),
    [
        (-0.8, -0.1, "multistep", "fast_instability"),
        (-0.8, 0.1, "single_turn", "fast_instability"),
        (-0.7, -0.1, "multistep", "negative_pressure"),
        (0.0, -0.1, "single_turn", "negative_pressure"),
        (0.0, 0.0, "multistep", "multistep_chunk_complete"),
        (0.0, 0.0, "single_turn", None),
    ],
)
def test_the_first_pause_rule_that_holds_decides(P_fast: float, P_net: float, mode: str, reason: str | None) -> None:
    assert pause_reason(P_fast, P_net, mode) == reason


def follow(rule: str, reason: str | None, *, rho: float, steps: int, P_net: float = 0.3, share: float = 1.0) -> float:
    for _ in range(steps):
        rho = next_rho(rho, with_net(P_net), reason, rule, PLAIN, share)
    return rho


def test_documented_intent_stays_at_zero_in_multistep_and_follows_pressure_in_a_single_turn() -> None:
    assert follow("documented", "multistep_chunk_complete", rho=0.0, steps=50) == 0.0
    assert follow("documented", "multistep_chunk_complete", rho=0.8, steps=3) == pytest.approx(0.1)
    assert follow("documented", None, rho=0.0, steps=100) == pytest.approx(0.5)
    assert follow("documented", None, rho=0.0, steps=1) == pytest.approx(0.15)


def test_carried_intent_follows_pressure_in_multistep_too() -> None:
    assert follow("carry", "multistep_chunk_complete", rho=0.0, steps=100) == pytest.approx(0.5)
    assert follow("carry", "fast_instability", rho=0.8, steps=1) == pytest.approx(0.4)


@pytest.mark.parametrize("rule", ["documented", "carry"])
def test_negative_pressure_ends_the_intent(rule: str) -> None:
    assert follow(rule, "negative_pressure", rho=0.9, steps=1, P_net=-0.1) == 0.0


def test_the_design_texts_intent_is_zero_at_every_full_chunk() -> None:
    assert follow("design", None, rho=0.9, steps=1, share=1.0) == 0.0
    falling = PLAIN._replace(dR=-0.2)
    assert next_rho(0.0, with_net(0.3), None, "design", falling, 0.5) == pytest.approx(0.5 * 0.5 * 1.7)
    assert next_rho(0.0, with_net(0.3), None, "design", PLAIN, 0.5) == pytest.approx(0.5 * 0.5 * 1.7 * 0.99)


@given(INPUTS, UNIT, st.sampled_from(pressures.RHO_RULES), st.sampled_from(["multistep", "single_turn"]), UNIT)
def test_intent_stays_between_zero_and_one(inputs: Inputs, rho: float, rule: str, mode: str, share: float) -> None:
    found = press(inputs, rho=rho, entropy_scale="norm", num_experts=8)
    reason = pause_reason(found.P_fast, found.P_net, mode)
    assert 0 <= next_rho(rho, found, reason, rule, inputs, share) <= 1
