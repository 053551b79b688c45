"""The sign law with its correction centred over experts (torchtitan): the same selection, and no drift of the mean.

    d = rate sign(mean n - n_e) ;  b <- b + d - mean_e d

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

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


def start(num_layers: int, num_experts: int, settings: BiasSettings, generator: torch.Generator) -> State:
    return {"bias_LE": torch.zeros(num_layers, num_experts)}


def step(state: State, observation: Observation, ticks: Ticks, settings: BiasSettings) -> tuple[State, Field, Signals]:
    if ticks.step <= settings.start_step:
        return state, bias_only(state["bias_LE"]), load_coherence(observation)
    bias_LE = state["bias_LE"] + centred(settings.rate * violation(observation.tokens_per_expert_LE).sign())
    return {"bias_LE": bias_LE}, bias_only(bias_LE), load_coherence(observation)


LAW = Law(BiasSettings, start, step)
