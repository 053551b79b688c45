"""Auxiliary-loss-free balancing by the sign of the violation (arXiv 2408.15664), as in DeepSeek-V3.

    b_e <- b_e + rate sign(mean n - n_e),  sign(0) = 0
Published with rate 1e-3 on sigmoid scores. In a stationary plant it ends in a limit cycle as large as the rate; the
mean of b drifts freely.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import torch

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import BiasSettings, Field, Law, Signals, State, bias_only, load_coherence, violation
from chronomoe.chrono.observation import Observation


def start(num_layers: int, num_experts: int, settings: BiasSettings, generator: torch.Generator) -> State:
    return {"bias_LE": torch.zeros(num_layers, num_experts)}


def step(state: State, observation: Observation, ticks: Ticks, settings: BiasSettings) -> tuple[State, Field, Signals]:
    if ticks.step <= settings.start_step:
        return state, bias_only(state["bias_LE"]), load_coherence(observation)
    bias_LE = state["bias_LE"] + settings.rate * violation(observation.tokens_per_expert_LE).sign()
    return {"bias_LE": bias_LE}, bias_only(bias_LE), load_coherence(observation)


LAW = Law(BiasSettings, start, step)
