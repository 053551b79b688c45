"""The magnitude variant of the sign law (arXiv 2408.15664): corrections in proportion to the violation.

    v_e = (mean n - n_e)/mean n ;  b <- centre(b + rate v)
Integral action on the load. It converges for a rate below about 1.5 standard deviations of the scores (8 experts,
top-2; less when the plant drifts) and diverges above.

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
    bias_LE = centred(state["bias_LE"] + settings.rate * violation(observation.tokens_per_expert_LE))
    return {"bias_LE": bias_LE}, bias_only(bias_LE), load_coherence(observation)


LAW = Law(BiasSettings, start, step)
