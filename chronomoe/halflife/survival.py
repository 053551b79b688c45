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

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.halflife.events import HALF, STOPPED, Events

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
    return np.cumprod(1 - hazard(table.half_BT, table.at_risk_BT), axis=-1)


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
    """RMST(horizon) in chunks, [B]; the horizon is a time at which some run was still seen."""
    assert horizon < survival_BT.shape[-1]
    return survival_BT[:, :horizon].sum(axis=-1)
