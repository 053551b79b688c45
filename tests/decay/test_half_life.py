"""Half-lives against the curves they are solved from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from chronomoe.decay.half_life import Fitted, by_midpoint, by_tau, by_threshold, crossing, documented


@given(
    st.sampled_from(["linear", "exponential", "step"]),
    st.floats(-1, 1),
    st.floats(-2, 2),
    st.floats(0.5, 50),
    st.floats(-1, 2),
)
def test_a_curve_is_at_the_threshold_where_it_is_said_to_cross_it(
    family: str, level: float, effect: float, parameter: float, threshold: float
) -> None:
    fitted = Fitted(family, level, effect, parameter, 60)  # type: ignore[arg-type]
    found = crossing(fitted, threshold)
    grid = np.array([fitted.at(k) for k in np.linspace(0, 59, 600)])
    if found.status == "reached":
        assert found.chunks is not None
        assume(abs(fitted.at(0) - threshold) > 1e-6)
        assert fitted.at(found.chunks + 1e-6) <= threshold + 1e-6
        assert fitted.at(max(found.chunks - 1e-3, 0)) >= threshold - 1e-6
    elif found.status == "undefined":
        assert grid[0] <= threshold
    else:
        assert (grid > threshold - 1e-9).all()
        assert found.chunks == (59 if found.status == "censored" else None)


def test_an_exponential_by_hand() -> None:
    fitted = Fitted("exponential", 0.1, 0.5, 10.0, 50)
    assert by_tau(fitted, True).chunks == pytest.approx(6.9315, abs=1e-4)
    assert by_tau(fitted, False) == (None, "not identifiable")
    assert by_threshold(fitted).chunks == pytest.approx(-10 * np.log((0.3 - 0.1) / 0.5))
    assert by_midpoint(fitted, 0.0).chunks == by_threshold(fitted).chunks
    assert by_midpoint(fitted, 0.2).chunks == pytest.approx(-10 * np.log((0.4 - 0.1) / 0.5))


def test_an_asymptote_above_half_is_never_passed() -> None:
    assert by_threshold(Fitted("exponential", 0.4, 0.2, 5.0, 50)) == (None, "unreachable")
    assert by_threshold(Fitted("constant", 0.4, 0.0, 0.0, 50)) == (None, "unreachable")
    assert by_threshold(Fitted("linear", 0.4, 0.01, 0.0, 50)) == (None, "unreachable")


def test_a_crossing_after_the_last_chunk_is_censored_there() -> None:
    assert by_threshold(Fitted("linear", 1.0, -0.5 / 48, 0.0, 50)) == (pytest.approx(48), "reached")
    assert by_threshold(Fitted("linear", 1.0, -0.5 / 50, 0.0, 50)) == (49, "censored")


def test_half_of_what_starts_at_or_below_zero_means_nothing() -> None:
    assert by_threshold(Fitted("linear", -0.1, -0.01, 0.0, 50)) == (None, "undefined")
    assert by_midpoint(Fitted("linear", 0.1, -0.01, 0.0, 50), floor=0.2) == (None, "undefined")


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40))
def test_the_documented_half_life_is_its_rule(values: list[float]) -> None:
    rule = next((i for i, p in enumerate(values) if p <= values[0] / 2), None)
    found = documented(np.array(values))
    assert found == ((len(values) - 1, "censored") if rule is None else (rule, "reached"))
