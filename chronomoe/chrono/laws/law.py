"""What a control law is: a pure function (state, observation, ticks, settings) -> (state, field, signals).

State is what the next step needs and a checkpoint keeps; signals are what a person watches and nothing reads back.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronomoe.chrono import coherence, temperature
from chronomoe.chrono.clocks import ClockSettings, Ticks
from chronomoe.chrono.knob import PRESSURE_EXPONENT, TEMPERATURE_EXPONENT, KnobSettings, factor, kappa
from chronomoe.chrono.observation import Observation, share
from chronomoe.chrono.temperature import State, TemperatureSettings
from chronomoe.model.router import Balancer
from chronomoe.model.sensor import Probe
from chronomoe.settings import setting

Signals = dict[str, Tensor]
"""`pressure_LE` and `lens_LE` as they enter the bias (logits), `coherence_L`, `coherence_change_L`, `gate_L`: what a
law has."""


class Field(NamedTuple):
    """What the controller does to the routers; zeros are neutral."""

    bias_LE: Tensor
    log_temperature_LE: Tensor


@dataclass(kw_only=True)
class ChronoSettings:
    """What every law has, `off` included: it watches, whatever it does."""

    law: str = setting()
    """Name of the control law; set by the file, not by hand."""
    actuation: str = setting("selection", choices=["selection", "logits"])
    """Whether the field moves only which experts are chosen, or also their mixing weights."""
    dead_after_steps: int = setting(100, low=1)
    """An expert without a token for this many optimizer steps is dead."""
    phi: bool = setting(False)
    """Measure how well experts' outputs agree (phi), on at most 256 tokens of each forward pass and layer."""


@dataclass(kw_only=True)
class BiasSettings(ChronoSettings):
    """What every law has that adds small corrections to a bias."""

    rate: float = setting(low=0.0)
    """Size of one correction, in units of the gate's scores (logits, unless router.gate says otherwise)."""
    start_step: int = setting(0, low=0)
    """Optimizer steps during which the controller only watches; the field stays neutral."""


@dataclass(kw_only=True)
class ControlSettings(ChronoSettings):
    """What every law with a pressure has."""

    pressure_scale: float = setting(low=0.0)
    """Gain of the pressure, in logits; 0 removes it."""
    layer_scales: list[float] = setting([])
    """Factor on the pressure of each MoE layer; empty means 1 for all."""
    schedule: str = setting("constant", choices=["constant", "warmup", "cosine"])
    """Pressure over the run: constant, rising linearly from 0, or annealed to 0 along a half cosine."""
    schedule_steps: int = setting(low=1)
    """Optimizer steps the warm-up or the anneal takes."""
    start_step: int = setting(0, low=0)
    """Optimizer steps during which the controller only watches; the field stays neutral."""
    half_life_steps: float | None = setting(low=0.0)
    """Half-life of the load's memory, in optimizer steps; null remembers the whole run alike."""
    clocks: ClockSettings = field(default_factory=ClockSettings)
    knob: KnobSettings = field(default_factory=KnobSettings)
    temperature: TemperatureSettings = field(default_factory=TemperatureSettings)


class Law(NamedTuple):
    settings: type[ChronoSettings]
    start: Callable[[int, int, Any, torch.Generator], State]
    """(layers, experts, settings, generator) -> the state before the first tick, on the CPU."""
    step: Callable[[State, Observation, Ticks, Any], tuple[State, Field, Signals]]
    inert: frozenset[str] = frozenset()
    """State that is known not to reach the routers. Empty for every law but a faithful copy of a defective one."""
    probes: Callable[[Any, int], list[Probe]] = lambda settings, top_k: []
    """(settings, top_k) -> what the law must read besides counts."""
    balancer: Callable[[Any], Balancer | None] = lambda settings: None
    """settings -> a solver that assigns each training batch as a whole."""


def scheduled_pressure(state: State, ticks: Ticks, settings: ControlSettings) -> Tensor:
    """The pressure after its schedule (which begins when control does), its scale, the knob and its layer's factor."""
    progress = min(1.0, max(0, ticks.step - settings.start_step) / settings.schedule_steps)
    shape = {"constant": 1.0, "warmup": progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    scaled_LE = state["pressure_LE"] * (settings.pressure_scale * shape[settings.schedule])
    scaled_LE = scaled_LE * factor(PRESSURE_EXPONENT, kappa(state, ticks, settings.knob))
    if not settings.layer_scales:
        return scaled_LE
    # Row by row, because a tensor of the scales would have to be copied from the host at every step.
    return torch.stack([row_E * scale for row_E, scale in zip(scaled_LE, settings.layer_scales, strict=True)])


def turned_temperature(state: State, like_LE: Tensor, ticks: Ticks, settings: ControlSettings) -> Tensor:
    """The field's log-temperature after the knob; zeros when there is no temperature, wherever the knob stands."""
    log_temperature_LE = temperature.log_temperature(state, like_LE)
    if settings.temperature.kind == "off":
        return log_temperature_LE
    return log_temperature_LE + TEMPERATURE_EXPONENT * kappa(state, ticks, settings.knob)


def knob_signal(state: State, ticks: Ticks, settings: ControlSettings) -> Signals:
    """The knob's position for every layer, where something turns it."""
    if settings.knob.kind == "fixed":
        return {}
    return {"kappa_L": state["pressure_LE"].new_ones(len(state["pressure_LE"])) * kappa(state, ticks, settings.knob)}


def violation(tokens_per_expert_LE: Tensor) -> Tensor:
    """v = (mean - n)/mean of a step's counts, in [1 - E/k, 1], positive where under-used; 0 in an empty layer."""
    mean_L1 = tokens_per_expert_LE.double().mean(dim=-1, keepdim=True)
    return (1.0 - tokens_per_expert_LE / mean_L1).where(mean_L1 > 0, 0.0).float()


def centred(values_LE: Tensor) -> Tensor:
    """Zero mean over experts; a common part would move nothing and drift."""
    return values_LE - values_LE.mean(dim=-1, keepdim=True)


def bias_only(bias_LE: Tensor) -> Field:
    return Field(bias_LE, torch.zeros_like(bias_LE))


def load_coherence(observation: Observation) -> Signals:
    """What a law without a coherence of its own shows: 1 - H(load)/ln E of the step."""
    share_LE = share(observation.tokens_per_expert_LE)
    return {"coherence_L": coherence.entropy(share_LE, share_LE)}


def neutral(like_LE: Tensor) -> Field:
    return Field(torch.zeros_like(like_LE), torch.zeros_like(like_LE))
