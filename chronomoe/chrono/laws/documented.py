"""The Chronovisor law as it was first documented, faults included.

    coherence  C = 1 - mean over layers of H(gate mass share)/ln E, or the phase order R
    micro      P = clip(2 (1/E - share), -1, 1)
    macro      g = sigmoid(5 (C_t - C_{t-1})),  lens v <- v + gamma g P
    field      z' = (z + pressure_scale P) / T
P is proportional only and fades with 2/E; the lens is integrated and never reaches a router; T heats under- and
over-used experts alike. It is reproduced so that claims about it can be tested (docs/laws.md lists what was found).
Where this differs from the original on purpose (what a tick is, whose counts, centred logits) is listed there too.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono import coherence, knob, temperature
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import (
    ControlSettings,
    Field,
    Law,
    Signals,
    State,
    knob_signal,
    neutral,
    scheduled_pressure,
    turned_temperature,
)
from chronomoe.chrono.observation import Observation, remember, share
from chronomoe.settings import setting

GATE_SLOPE = 5.0
PHASE_GAIN = 0.1


@dataclass(kw_only=True)
class DocumentedSettings(ControlSettings):
    gamma: float = setting(low=0.0)
    """Gain of the lens per macro tick."""
    coherence: str = setting("entropy", choices=["entropy", "phase"])
    """The documented measure (entropy of the gate mass), or the phase order used in the published runs."""


def start(num_layers: int, num_experts: int, settings: DocumentedSettings, generator: torch.Generator) -> State:
    shape = (num_layers, num_experts)
    state = {"memory_LE": torch.zeros(shape, dtype=torch.float64), "coherence": torch.zeros(())}
    state |= {"pressure_LE": torch.zeros(shape), "lens_LE": torch.zeros(shape)}
    if settings.coherence == "phase":
        state["phase_LE"] = 2 * math.pi * torch.rand(shape, generator=generator)
    return state | knob.start(settings.knob) | temperature.start(num_layers, num_experts, settings.temperature)


def measure_coherence(state: State, observation: Observation) -> tuple[Tensor, State]:
    """Coherence of this step as a scalar, and the phases after it when they are what is measured."""
    if "phase_LE" not in state:
        mass_LE = share(observation.gate_mass_LE)
        return coherence.entropy(mass_LE, mass_LE).mean(), {}
    mean_weight_LE = (observation.gate_mass_LE / observation.tokens_per_expert_LE.clamp(min=1)).float()
    phase_LE = (state["phase_LE"] + PHASE_GAIN * mean_weight_LE) % (2 * math.pi)
    return coherence.phase_order(phase_LE), {"phase_LE": phase_LE}


def step(
    state: State, observation: Observation, ticks: Ticks, settings: DocumentedSettings
) -> tuple[State, Field, Signals]:
    now, phases = measure_coherence(state, observation)
    change = now - state["coherence"]
    gate = torch.sigmoid(GATE_SLOPE * change)
    state = state | knob.step(state, observation, ticks, settings.knob) | phases | {"coherence": now}
    state["memory_LE"] = remember(state["memory_LE"], observation.tokens_per_expert_LE, settings.half_life_steps)
    share_LE = share(state["memory_LE"])
    state |= temperature.step(state, share_LE, now, ticks, settings.temperature)
    if ticks.micro:
        state["pressure_LE"] = (2.0 * (1.0 / share_LE.shape[-1] - share_LE)).clamp(-1.0, 1.0)
    if ticks.macro:
        state["lens_LE"] = state["lens_LE"] + settings.gamma * gate * state["pressure_LE"]
    log_temperature_LE = turned_temperature(state, share_LE, ticks, settings)
    pressure_LE = scheduled_pressure(state, ticks, settings) / log_temperature_LE.exp()
    field = Field(pressure_LE, log_temperature_LE) if ticks.step > settings.start_step else neutral(share_LE)
    per_layer = share_LE.new_ones(share_LE.shape[0])
    signals = {"pressure_LE": field.bias_LE, "lens_LE": state["lens_LE"], "coherence_L": now * per_layer}
    signals |= {"coherence_change_L": change * per_layer, "gate_L": gate * per_layer}
    return state, field, signals | knob_signal(state, ticks, settings)


# The published lens, and the coherence whose change opens its gate, reach no router.
LAW = Law(DocumentedSettings, start, step, inert=frozenset({"lens_LE", "coherence"}))
