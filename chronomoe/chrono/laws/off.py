"""No control: the field stays neutral, so the run is bit for bit the plain model's."""

from __future__ import annotations

import torch

from chronomoe.chrono import coherence
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, neutral
from chronomoe.chrono.observation import Observation, share


def start(num_layers: int, num_experts: int, settings: ChronoSettings, generator: torch.Generator) -> State:
    return {}


def step(
    state: State, observation: Observation, ticks: Ticks, settings: ChronoSettings
) -> tuple[State, Field, Signals]:
    share_LE = share(observation.tokens_per_expert_LE)
    return state, neutral(share_LE), {"coherence_L": coherence.entropy(share_LE, share_LE)}


LAW = Law(ChronoSettings, start, step)
