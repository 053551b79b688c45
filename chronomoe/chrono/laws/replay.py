"""Replay: the field another run's controller made, played open loop whatever this run's routing does.

    field(step) = recorded field(step), held where the record skips steps and after its end
With the recorded run's own seed and settings it repeats that run; with another seed it tells what the field does
without feedback. A record keeps every step up to 1,024, then every second, and so on.

Axes: N recorded steps, L MoE layers, E experts.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, load_coherence
from chronomoe.chrono.observation import Observation
from chronomoe.settings import InputError, setting


@dataclass(kw_only=True)
class TraceSettings(ChronoSettings):
    trace: str = setting()
    """The folder of the run whose recorded field is used."""


def read_trace(trace: str, num_layers: int, num_experts: int) -> State:
    """The recorded steps and fields. Raises InputError if there is no record, or if it is that of another shape."""
    path = Path(trace).expanduser() / "routing.npz"
    try:
        with np.load(path) as arrays:
            step_N = torch.from_numpy(arrays["step"]).long()
            bias_NLE, log_temperature_NLE = (torch.from_numpy(arrays[n]) for n in ("bias", "log_temperature"))
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"chrono.trace={trace}: no routing.npz to read there; give the folder of a run") from None
    found = "x".join(map(str, bias_NLE.shape[1:]))
    if found != f"{num_layers}x{num_experts}":
        raise InputError(
            f"chrono.trace={trace} holds {found} layers x experts, the model has {num_layers}x{num_experts}: "
            "give a run of this model"
        )
    return {"step_N": step_N, "bias_NLE": bias_NLE, "log_temperature_NLE": log_temperature_NLE}


def field_at(state: State, step: int) -> Field:
    """The newest recorded field up to `step`; neutral before the first. Nothing waits for the host."""
    index = (state["step_N"] <= step).sum()
    recorded = index > 0
    row = (index - 1).clamp(min=0)[None]
    bias_LE, log_temperature_LE = (state[n].index_select(0, row)[0] for n in ("bias_NLE", "log_temperature_NLE"))
    return Field(bias_LE * recorded, log_temperature_LE * recorded)


def start(num_layers: int, num_experts: int, settings: TraceSettings, generator: torch.Generator) -> State:
    return read_trace(settings.trace, num_layers, num_experts)


def step(state: State, observation: Observation, ticks: Ticks, settings: TraceSettings) -> tuple[State, Field, Signals]:
    return state, field_at(state, ticks.step), load_coherence(observation)


LAW = Law(TraceSettings, start, step)
