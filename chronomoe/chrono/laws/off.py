"""No control: the field stays neutral, so the run is bit for bit the plain model's."""

from __future__ import annotations

import torch

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, load_coherence, neutral
from chronomoe.chrono.observation import Observation


def start(num_layers: int, num_experts: int, settings: ChronoSettings, generator: torch.Generator) -> State:
    return {}


def step(
    state: State, observation: Observation, ticks: Ticks, settings: ChronoSettings
) -> tuple[State, Field, Signals]:
    return state, neutral(observation.tokens_per_expert_LE.float()), load_coherence(observation)


LAW = Law(ChronoSettings, start, step)
