"""The Chronovisor law: proportional pressure, and a lens that integrates what pressure leaves behind.

    error    e = 1 - E * share         share from a leaky memory of the load; 0 is fair, 1 an idle expert
             clipped to [-1, 1] and centred over experts
    micro    P = e
    macro    C = coherence(share),  g = sigmoid(dC / rms dC),  v <- bound((1 - leak) v + gamma g e)
    field    bias = pressure_scale P + v
The gate integrates faster while coherence rises (with the entropy measure: while load concentrates) and slower while it
falls, measured against the size its changes usually have (in training they are far larger than their sampling noise,
in units of which the gate would be a switch). Proportional action alone leaves a steady error; the lens
removes it, as the integral of a PI controller does, and the bound keeps it from winding up.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono import knob, phi, temperature
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.coherence import MEASURES
from chronomoe.chrono.laws.law import (
    ControlSettings,
    Field,
    Law,
    Signals,
    State,
    centred,
    knob_signal,
    neutral,
    scheduled_pressure,
    turned_temperature,
)
from chronomoe.chrono.observation import Observation, remember, share
from chronomoe.settings import setting

CHANGE_MEMORY = 0.9
"""Share of the mean square coherence change kept per macro tick (half-life 6.6 macro ticks)."""


@dataclass(kw_only=True)
class ChronovisorSettings(ControlSettings):
    gamma: float = setting(low=0.0)
    """Gain of the lens per macro tick, in logits; 0 leaves proportional action alone."""
    leak: float = setting(low=0.0, high=1.0)
    """Part of the lens that fades at each macro tick."""
    lens_bound: float = setting(low=0.0)
    """Largest absolute lens, in logits (anti-windup)."""
    lens: str = setting("per_layer", choices=["per_layer", "global"])
    """One lens for each layer, or one for all, fed by their mean error."""
    coherence: str = setting("entropy", choices=[*MEASURES, "phi"])
    """What opens the gate of the lens when it rises: a measure of the load, or the layer's mean excess phi."""


def start(num_layers: int, num_experts: int, settings: ChronovisorSettings, generator: torch.Generator) -> State:
    shape = (num_layers, num_experts)
    state = {"memory_LE": torch.zeros(shape, dtype=torch.float64)}
    state |= {"pressure_LE": torch.zeros(shape), "lens_LE": torch.zeros(shape)}
    state |= {"coherence_L": torch.zeros(num_layers), "change_power_L": torch.zeros(num_layers)}
    if settings.coherence == "stability":
        state["previous_share_LE"] = torch.full(shape, 1.0 / num_experts)
    return state | knob.start(settings.knob) | temperature.start(num_layers, num_experts, settings.temperature)


def bounded(lens_LE: Tensor, bound: float) -> Tensor:
    """Centre over experts, then shrink a layer's lens as a whole if it exceeds the bound, so that it stays centred."""
    centred_LE = centred(lens_LE)
    largest_L1 = centred_LE.abs().amax(dim=-1, keepdim=True)
    return centred_LE * (bound / largest_L1.clamp(min=1e-12)).clamp(max=1.0)


def measure(state: State, share_LE: Tensor, observation: Observation, settings: ChronovisorSettings) -> Tensor:
    """The layers' coherence now, [L]; an unread phi leaves it where it was."""
    if settings.coherence != "phi":
        return MEASURES[settings.coherence](share_LE, state.get("previous_share_LE", share_LE))
    phi_L = phi.decode(observation.readings["phi"]).excess_LE.nanmean(dim=-1)
    return phi_L.where(phi_L.isfinite(), state["coherence_L"])


def open_gate(
    state: State, share_LE: Tensor, now_L: Tensor, reading: int, settings: ChronovisorSettings
) -> tuple[State, Tensor, Tensor]:
    """State after the macro tick's `reading` (from 1) of coherence, its change [L], and the gate in (0, 1) [L].

    The first reading has nothing to differ from: its change is 0 and its gate half open. The mean square is
    bias-corrected for the changes seen, so the first one counts as usual and not as a shock.
    """
    change_L = now_L - state["coherence_L"] if reading > 1 else torch.zeros_like(now_L)
    power_L = CHANGE_MEMORY * state["change_power_L"] + (1.0 - CHANGE_MEMORY) * change_L.square()
    seen = 1.0 - CHANGE_MEMORY ** max(1, reading - 1)
    gate_L = torch.sigmoid(change_L / (power_L / seen).sqrt().clamp(min=1e-12))
    read = {"coherence_L": now_L, "change_power_L": power_L}
    return read | ({"previous_share_LE": share_LE} if "previous_share_LE" in state else {}), change_L, gate_L


def integrate(lens_LE: Tensor, error_LE: Tensor, gate_L: Tensor, settings: ChronovisorSettings) -> Tensor:
    """One macro tick of the lens. A global lens sees the layers' mean error through their mean gate."""
    drive_LE = settings.gamma * gate_L[:, None] * error_LE
    if settings.lens == "global":
        drive_LE = settings.gamma * gate_L.mean() * error_LE.mean(dim=0).expand_as(error_LE)
    return bounded((1.0 - settings.leak) * lens_LE + drive_LE, settings.lens_bound)


def step(
    state: State, observation: Observation, ticks: Ticks, settings: ChronovisorSettings
) -> tuple[State, Field, Signals]:
    state = state | knob.step(state, observation, ticks, settings.knob)
    state["memory_LE"] = remember(state["memory_LE"], observation.tokens_per_expert_LE, settings.half_life_steps)
    share_LE = share(state["memory_LE"])
    clipped_LE = (1.0 - share_LE.shape[-1] * share_LE).clamp(-1.0, 1.0)
    error_LE = centred(clipped_LE)
    active = ticks.step > settings.start_step
    signals: Signals = {}
    if ticks.micro:
        state["pressure_LE"] = error_LE
    if ticks.macro:
        reading = ticks.step // settings.clocks.macro_period
        now_L = measure(state, share_LE, observation, settings)
        read, change_L, gate_L = open_gate(state, share_LE, now_L, reading, settings)
        state |= read
        signals = {"coherence_L": read["coherence_L"], "coherence_change_L": change_L, "gate_L": gate_L}
        if active:
            state["lens_LE"] = integrate(state["lens_LE"], error_LE, gate_L, settings)
    if active:
        coherence = state["coherence_L"].mean().clamp(0.0, 1.0)  # alignment may be negative, heat may not
        state |= temperature.step(state, share_LE, coherence, ticks, settings.temperature)
    pressure_LE = scheduled_pressure(state, ticks, settings)
    field = Field(pressure_LE + state["lens_LE"], turned_temperature(state, share_LE, ticks, settings))
    signals |= {"pressure_LE": pressure_LE, "lens_LE": state["lens_LE"]} | knob_signal(state, ticks, settings)
    return state, field if active else neutral(share_LE), signals


LAW = Law(ChronovisorSettings, start, step)
