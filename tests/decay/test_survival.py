"""Kaplan-Meier and Aalen-Johansen against tables computed by hand, with ties, heavy censoring and no event at all."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.decay.events import CENSORED, HALF, STOPPED, Events, half_event, half_events, refusal
from chronomoe.decay.series import Series
from chronomoe.decay.survival import (
    RiskTable,
    incidence,
    kaplan_meier,
    log_log_band,
    median_time,
    restricted_mean,
    risk_table,
    survive,
)
from chronomoe.settings import InputError
from scripts.decay_rates import false_halves

RUNS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([CENSORED, HALF, STOPPED])), min_size=1, max_size=25)


def events_of(runs: list[tuple[int, int]]) -> Events:
    times, kinds = zip(*runs, strict=True)
    return Events(np.array(times), np.array(kinds))


def table_of(runs: list[tuple[int, int]]) -> RiskTable:
    return risk_table(events_of(runs), np.ones((1, len(runs))))


def by_hand(runs: list[tuple[int, int]]) -> tuple[list[Fraction], list[Fraction], list[Fraction]]:
    """S of the half-life, F of the half-life, F of stopping, in fractions."""
    survival, either, half, stopped = Fraction(1), Fraction(1), Fraction(0), Fraction(0)
    rows: tuple[list[Fraction], list[Fraction], list[Fraction]] = ([], [], [])
    for time in range(max(time for time, _ in runs) + 1):
        risk = sum(t >= time for t, _ in runs)
        counts = [sum(run == (time, kind) for run in runs) for kind in (HALF, STOPPED)]
        survival *= 1 - Fraction(counts[0], risk)
        half += either * Fraction(counts[0], risk)
        stopped += either * Fraction(counts[1], risk)
        either *= 1 - Fraction(sum(counts), risk)
        for row, value in zip(rows, (survival, half, stopped), strict=True):
            row.append(value)
    return rows


@given(RUNS)
def test_the_curves_are_their_definitions_in_fractions(runs: list[tuple[int, int]]) -> None:
    table = table_of(runs)
    found = (kaplan_meier(table)[0], *(of[0] for of in incidence(table)))
    for curve, row in zip(found, by_hand(runs), strict=True):
        np.testing.assert_allclose(curve, [float(value) for value in row], atol=1e-12)


def test_the_remission_times_of_freireich_with_ties_and_heavy_censoring() -> None:
    """6-mercaptopurine, 21 patients, 9 events: the table of every textbook (Gehan 1965)."""
    events = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    censored = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    table = table_of([(t, HALF) for t in events] + [(t, CENSORED) for t in censored])
    survival, (low, high) = kaplan_meier(table)[0], log_log_band(table)
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for time, value in published.items():
        assert survival[time] == pytest.approx(value, abs=6e-4)
    assert survival[5] == low[0, 5] == high[0, 5] == 1
    assert (low[0, 6], high[0, 6]) == (pytest.approx(0.620, abs=1e-3), pytest.approx(0.952, abs=1e-3))
    assert (low[0, 23], high[0, 23]) == (pytest.approx(0.188, abs=1e-3), pytest.approx(0.680, abs=1e-3))
    assert median_time(kaplan_meier(table)) == [23]
    assert (median_time(low)[0], median_time(high)[0]) == (13, np.inf)


def test_stopping_competes_by_hand() -> None:
    """Four runs: half at 1, stopped at 2, half and censored at 3."""
    table = table_of([(1, HALF), (2, STOPPED), (3, HALF), (3, CENSORED)])
    half, stopped = (curve[0].tolist() for curve in incidence(table))
    assert half == pytest.approx([0, 1 / 4, 1 / 4, 1 / 4 + 1 / 2 * 1 / 2])
    assert stopped == pytest.approx([0, 0, 1 / 4, 1 / 4])
    assert kaplan_meier(table)[0].tolist() == pytest.approx([1, 3 / 4, 3 / 4, 3 / 8])


@given(RUNS)
def test_incidences_and_survival_of_both_sum_to_one(runs: list[tuple[int, int]]) -> None:
    table = table_of(runs)
    either = kaplan_meier(RiskTable(table.at_risk_BT, table.half_BT + table.stopped_BT, table.stopped_BT))
    np.testing.assert_allclose(sum(incidence(table)) + either, 1, atol=1e-12)


@given(RUNS)
def test_the_band_holds_the_curve_and_the_mean_stays_below_its_horizon(runs: list[tuple[int, int]]) -> None:
    table = table_of(runs)
    survival, (low, high) = kaplan_meier(table), log_log_band(table)
    assert (low <= survival + 1e-12).all()
    assert (high >= survival - 1e-12).all()
    for horizon in range(survival.shape[1]):
        assert 0 <= restricted_mean(survival, horizon)[0] <= horizon


@given(RUNS)
def test_without_censoring_the_restricted_mean_is_the_mean(runs: list[tuple[int, int]]) -> None:
    times = [time for time, _ in runs]
    survival = kaplan_meier(table_of([(time, HALF) for time in times]))
    assert restricted_mean(survival, max(times))[0] == pytest.approx(np.mean(times))


def test_a_median_that_is_not_reached_is_no_number() -> None:
    survival = kaplan_meier(table_of([(3, HALF), (9, CENSORED), (9, CENSORED)]))
    assert median_time(survival)[0] == np.inf
    arm = [Series(np.full(20, 0.5), str(index), 0) for index in range(5)]
    found = survive(arm)
    assert found.median.estimate is found.median.low is found.median.high is None
    assert found.restricted_mean.estimate == found.horizon == 17


def test_weights_are_as_if_runs_were_repeated() -> None:
    runs = [(2, HALF), (4, CENSORED), (5, STOPPED)]
    weighted = risk_table(events_of(runs), np.array([[2.0, 0.0, 1.0]]))
    repeated = table_of([runs[0], runs[0], runs[2]])
    np.testing.assert_allclose(kaplan_meier(weighted), kaplan_meier(repeated))
    np.testing.assert_allclose(incidence(weighted), incidence(repeated))


def test_an_event_needs_three_of_five_chunks_and_is_timed_at_their_middle() -> None:
    value = np.ones(20)
    value[[8, 10]] = 0.1
    assert half_event(Series(value, "a", 0)) == (17, CENSORED)
    value[11] = 0.1
    assert half_event(Series(value, "a", 0)) == (9, HALF)  # chunks 7 to 11


def test_a_run_ends_as_its_text_did() -> None:
    flat = np.ones(12)
    degenerate = np.arange(12) >= 8
    assert half_event(Series(flat, "a", 0, "eos")) == (9, STOPPED)
    assert half_event(Series(flat, "a", 0, "degenerate", degenerate)) == (5, CENSORED)
    assert half_event(Series(flat[:3], "a", 0, "eos")) == (0, STOPPED)


@pytest.mark.parametrize(("deviation", "phi", "share"), [(0.1, 0.0, 0.002), (0.1, 0.5, 0.032), (0.15, 0.5, 0.28)])
def test_noise_loses_half_as_rarely_as_specified(deviation: float, phi: float, share: float) -> None:
    assert false_halves(deviation, phi)[1] == pytest.approx(share, abs=4 * np.sqrt(2 * share * (1 - share) / 2000))


def test_the_documented_half_life_fires_in_almost_every_second_run_that_never_falls() -> None:
    for phi, share in ((0.0, 0.47), (0.5, 0.43)):
        assert false_halves(0.1, phi)[0] == pytest.approx(share, abs=4 * np.sqrt(2 * 0.25 / 2000))


def test_too_much_noise_or_a_start_below_zero_is_refused_in_words() -> None:
    rng = np.random.default_rng(0)

    def arm(level: float, deviation: float) -> list[Series]:
        return [Series(level + deviation * rng.normal(size=50), str(index), 0) for index in range(10)]

    assert refusal(arm(0.45, 0.05), 0.0) is None
    assert "noise is 0.3" in str(refusal(arm(0.45, 0.16), 0.0))
    assert "10 of 10 series start at or below 0" in str(refusal(arm(-0.45, 0.05), 0.0))
    degenerate = [Series(np.ones(10), "a", 0, "degenerate", np.ones(10, bool))]
    assert "not degenerate" in str(refusal(degenerate, 0.0))


def test_a_horizon_nobody_was_seen_at_is_refused() -> None:
    arm = [Series(np.ones(20), "a", 0), Series(np.ones(30), "b", 0)]
    assert survive(arm, 27).horizon == 27
    with pytest.raises(InputError, match="until chunk 27"):
        survive(arm, 28)
    falling = [Series(np.where(np.arange(20) < 6, 1.0, 0.1), str(index), 0) for index in range(3)]
    assert survive(falling, 40).restricted_mean.estimate == survive(falling).restricted_mean.estimate == 6


def test_half_events_keep_the_order_of_the_arm() -> None:
    falling = np.where(np.arange(20) < 6, 1.0, 0.1)
    found = half_events([Series(np.ones(20), "a", 0), Series(falling, "a", 1)])
    assert found.kind_S.tolist() == [CENSORED, HALF]
    assert found.time_S.tolist() == [17, 6]
