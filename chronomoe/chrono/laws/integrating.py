"""Laws that add up corrections: b <- b + correction(v), v_e = (mean n - n_e)/mean n of the step's counts.

Each of them is its correction; sign, centered_sign and proportional are such laws.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import BiasSettings, Field, Law, Signals, State, bias_only, load_coherence, violation
from chronomoe.chrono.observation import Observation


def start(num_layers: int, num_experts: int, settings: BiasSettings, generator: torch.Generator) -> State:
    return {"bias_LE": torch.zeros(num_layers, num_experts)}


def integrating_law(correction: Callable[[Tensor, BiasSettings], Tensor]) -> Law:
    """The law that adds `correction(violation_LE, settings)` to its bias at every step after `start_step`."""

    def step(
        state: State, observation: Observation, ticks: Ticks, settings: BiasSettings
    ) -> tuple[State, Field, Signals]:
        bias_LE = state["bias_LE"]
        if ticks.step > settings.start_step:
            bias_LE = bias_LE + correction(violation(observation.tokens_per_expert_LE), settings)
        return {"bias_LE": bias_LE}, bias_only(bias_LE), load_coherence(observation)

    return Law(BiasSettings, start, step)
