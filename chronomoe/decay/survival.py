"""Survival with censoring and with a competing event, on whole times, for any weights of the runs.

    Kaplan-Meier:    S(t) = prod over u <= t of (1 - d_u / n_u);   n_u runs at risk, d_u events at u   (1958)
    band (log-log):  S(t)^exp(+-z s),  s^2 = sum over u <= t of d_u / (n_u (n_u - d_u)) / (ln S(t))^2
    Aalen-Johansen:  F_j(t) = sum over u <= t of S(u-) d_ju / n_u,  S the survival of all events together   (1978)
    RMST(h) = integral of S from 0 to h, in chunks: the mean time to the event if nobody is followed beyond h
    median = least t with S(t) <= 1/2; infinite where S stays above: "not reached" is no number, K least of all
At equal times events come before censorings. The band takes runs for independent, which seeds of one prompt are not;
intervals over prompts are intervals.py's. RMST exists for any censoring up to the last time that a run was seen.

Axes: B weightings, S series, T times 0, 1, ..., last.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.events import HALF, STOPPED, Events, half_events
from chronomoe.decay.intervals import Interval, cluster_interval
from chronomoe.decay.series import Series, prompt_indices
from chronomoe.settings import InputError

Z = NormalDist().inv_cdf(0.975)


class RiskTable(NamedTuple):
    at_risk_BT: NDArray[np.float64]
    half_BT: NDArray[np.float64]
    stopped_BT: NDArray[np.float64]


def risk_table(events: Events, weight_BS: NDArray[np.float64]) -> RiskTable:
    time_T = np.arange(int(events.time_S.max()) + 1)
    now_ST = (events.time_S[:, None] == time_T).astype(np.float64)
    return RiskTable(
        at_risk_BT=weight_BS @ (events.time_S[:, None] >= time_T),
        half_BT=weight_BS @ (now_ST * (events.kind_S == HALF)[:, None]),
        stopped_BT=weight_BS @ (now_ST * (events.kind_S == STOPPED)[:, None]),
    )


def hazard(count_BT: NDArray[np.float64], at_risk_BT: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(count_BT, at_risk_BT, out=np.zeros_like(count_BT), where=at_risk_BT > 0)


def kaplan_meier(table: RiskTable) -> NDArray[np.float64]:
    """S(t) of the half-life with everything else as censoring, [B, T]; goes on as it is where nobody is at risk."""
    return np.cumprod(1 - hazard(table.half_BT, table.at_risk_BT), axis=-1, dtype=np.float64)


def incidence(table: RiskTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """F of the half-life and F of the run ending itself, each [B, T]; with S they sum to 1."""
    either = np.cumprod(1 - hazard(table.half_BT + table.stopped_BT, table.at_risk_BT), axis=-1)
    before = np.concatenate([np.ones_like(either[:, :1]), either[:, :-1]], axis=-1)
    counts = (table.half_BT, table.stopped_BT)
    half, stopped = (np.cumsum(before * hazard(count, table.at_risk_BT), axis=-1) for count in counts)
    return half, stopped


def log_log_band(table: RiskTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pointwise 95% band of `kaplan_meier`; 1 to 1 before the first event, and as before where S falls to 0."""
    survival_BT = kaplan_meier(table)
    left_BT = table.at_risk_BT * (table.at_risk_BT - table.half_BT)
    greenwood_BT = np.cumsum(hazard(table.half_BT, left_BT), axis=-1)
    inside = (survival_BT > 0) & (survival_BT < 1)
    log_BT = np.log(np.where(inside, survival_BT, 0.5))
    error_BT = np.sqrt(greenwood_BT) / -log_BT
    low_BT, high_BT = (np.where(inside, np.exp(log_BT * np.exp(sign * Z * error_BT)), 1.0) for sign in (1, -1))
    low_BT = np.where(survival_BT > 0, low_BT, 0.0)
    return low_BT, np.minimum.accumulate(high_BT, axis=-1)


def median_time(survival_BT: NDArray[np.float64]) -> NDArray[np.float64]:
    """[B]; infinite where half is not reached. Of both ends of a band: the interval of the median."""
    below_BT = survival_BT <= 0.5 + 1e-12
    return np.where(below_BT.any(axis=-1), below_BT.argmax(axis=-1), np.inf)


def restricted_mean(survival_BT: NDArray[np.float64], horizon: int) -> NDArray[np.float64]:
    """RMST(horizon) in chunks, [B]; the horizon is a time at which some run was seen, or S is 0 at the last one."""
    return survival_BT[:, :horizon].sum(axis=-1)


class Survival(NamedTuple):
    """Time to half over prompts x seeds; one row of each curve per chunk from 0 on."""

    table: RiskTable
    """One weighting: every series once."""
    survival_T: NDArray[np.float64]
    """Kaplan-Meier: runs that ended themselves count as censored."""
    low_T: NDArray[np.float64]
    high_T: NDArray[np.float64]
    half_incidence_T: NDArray[np.float64]
    """Aalen-Johansen: runs that ended themselves compete."""
    stopped_incidence_T: NDArray[np.float64]
    median: Interval
    """Chunks; None: not reached."""
    median_band: tuple[float, float]
    """By the log-log band, runs taken for independent; infinite where it does not fall to 1/2."""
    restricted_mean: Interval
    """Chunks, up to `horizon`."""
    horizon: int


def survive(arm: Sequence[Series], horizon: int | None = None) -> Survival:
    """Survival of an arm; `horizon` in chunks for arms to be compared at the same one, by default the last time seen.

    Raises InputError for a horizon beyond the last time that any run was seen, unless all had lost half by then.
    """
    events, prompt_S = half_events(arm), prompt_indices(arm)
    last = int(events.time_S.max())
    horizon = last if horizon is None else horizon
    table = risk_table(events, np.ones((1, len(arm))))
    if horizon < 0 or (horizon > last and kaplan_meier(table)[0, -1] > 0):
        raise InputError(f"horizon={horizon}: the last run was seen until chunk {last}; choose 0 to {last}")

    def curve(weight_BS: NDArray[np.float64]) -> NDArray[np.float64]:
        return kaplan_meier(risk_table(events, weight_BS))

    (low_BT, high_BT), (half_BT, stopped_BT) = log_log_band(table), incidence(table)
    return Survival(
        table=table,
        survival_T=kaplan_meier(table)[0],
        low_T=low_BT[0],
        high_T=high_BT[0],
        half_incidence_T=half_BT[0],
        stopped_incidence_T=stopped_BT[0],
        median=cluster_interval(lambda weight_BS: median_time(curve(weight_BS)), prompt_S),
        median_band=(float(median_time(low_BT)[0]), float(median_time(high_BT)[0])),
        restricted_mean=cluster_interval(lambda weight_BS: restricted_mean(curve(weight_BS), horizon), prompt_S),
        horizon=horizon,
    )
