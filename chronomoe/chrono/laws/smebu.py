"""SMEBU, a soft-clamped momentum law (arXiv 2602.17004).

    v_e = (mean n - n_e)/mean n ;  d = rate tanh(slope v),  d <- d - mean_e d
    m <- momentum m + (1 - momentum) d ;  b <- b + m
A steep slope without momentum is the centred sign law; a gentle one is the proportional law with gain rate * slope.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import (
    BiasSettings,
    Field,
    Law,
    Signals,
    State,
    bias_only,
    centred,
    load_coherence,
    violation,
)
from chronomoe.chrono.observation import Observation
from chronomoe.settings import setting


@dataclass(kw_only=True)
class SmebuSettings(BiasSettings):
    slope: float = setting(low=0.0)
    """Steepness of the clamp: how small a violation already earns the whole correction."""
    momentum: float = setting(low=0.0, high=1.0)
    """Part of the last correction that is kept."""


def start(num_layers: int, num_experts: int, settings: SmebuSettings, generator: torch.Generator) -> State:
    return {"bias_LE": torch.zeros(num_layers, num_experts), "momentum_LE": torch.zeros(num_layers, num_experts)}


def step(state: State, observation: Observation, ticks: Ticks, settings: SmebuSettings) -> tuple[State, Field, Signals]:
    if ticks.step <= settings.start_step:
        return state, bias_only(state["bias_LE"]), load_coherence(observation)
    clamped_LE = torch.tanh(settings.slope * violation(observation.tokens_per_expert_LE))
    correction_LE = centred(settings.rate * clamped_LE)
    momentum_LE = settings.momentum * state["momentum_LE"] + (1.0 - settings.momentum) * correction_LE
    bias_LE = state["bias_LE"] + momentum_LE
    return {"bias_LE": bias_LE, "momentum_LE": momentum_LE}, bias_only(bias_LE), load_coherence(observation)


LAW = Law(SmebuSettings, start, step)
