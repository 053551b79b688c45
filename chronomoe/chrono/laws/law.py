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

from chronomoe.chrono.clocks import ClockSettings, Ticks
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.temperature import State, TemperatureSettings
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
    temperature: TemperatureSettings = field(default_factory=TemperatureSettings)


class Law(NamedTuple):
    settings: type[ChronoSettings]
    start: Callable[[int, int, Any, torch.Generator], State]
    """(layers, experts, settings, generator) -> the state before the first tick, on the CPU."""
    step: Callable[[State, Observation, Ticks, Any], tuple[State, Field, Signals]]
    inert: frozenset[str] = frozenset()
    """State that is known not to reach the routers. Empty for every law but a faithful copy of a defective one."""


def scheduled_pressure(pressure_LE: Tensor, ticks: Ticks, settings: ControlSettings) -> Tensor:
    """The pressure after its schedule (which begins when control does), its scale and its layer's factor."""
    progress = min(1.0, max(0, ticks.step - settings.start_step) / settings.schedule_steps)
    shape = {"constant": 1.0, "warmup": progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    scaled_LE = pressure_LE * (settings.pressure_scale * shape[settings.schedule])
    if not settings.layer_scales:
        return scaled_LE
    # Row by row, because a tensor of the scales would have to be copied from the host at every step.
    return torch.stack([row_E * scale for row_E, scale in zip(scaled_LE, settings.layer_scales, strict=True)])


def neutral(like_LE: Tensor) -> Field:
    return Field(torch.zeros_like(like_LE), torch.zeros_like(like_LE))
