"""Sham control: a field that moves as a recorded one does, in a direction that knows nothing of the load.

    field(step) = Q_layer recorded field(step),  Q random orthogonal with Q 1 = 1
A rotation keeps the field's norm at every step, how it changes over time, and its mean over experts; only where it
points is drawn by lot (from the run's seed). What a law does better than its sham is due to feedback.

Axes: N recorded steps, L MoE layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import Field, Law, Signals, State, load_coherence
from chronomoe.chrono.laws.replay import TraceSettings, field_at, read_trace
from chronomoe.chrono.observation import Observation


def random_rotation(num_experts: int, generator: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices [E, E] that leave the all-ones vector where it is."""
    basis_EE = torch.randn(num_experts, num_experts, generator=generator, dtype=torch.float64)
    basis_EE[:, 0] = 1.0
    basis_EE, upper_EE = torch.linalg.qr(basis_EE)
    basis_EE = basis_EE * upper_EE.diagonal().sign()  # makes the decomposition unique, and so the rotation uniform
    inner_EE = torch.eye(num_experts, dtype=torch.float64)
    drawn_EE, upper_EE = torch.linalg.qr(
        torch.randn(num_experts - 1, num_experts - 1, generator=generator, dtype=torch.float64)
    )
    inner_EE[1:, 1:] = drawn_EE * upper_EE.diagonal().sign()
    return (basis_EE @ inner_EE @ basis_EE.T).float()


def start(num_layers: int, num_experts: int, settings: TraceSettings, generator: torch.Generator) -> State:
    trace = read_trace(settings.trace, num_layers, num_experts)
    rotation_LEE = torch.stack([random_rotation(num_experts, generator) for _ in range(num_layers)])
    names = ("bias_NLE", "log_temperature_NLE")
    return trace | {name: torch.einsum("lef,nlf->nle", rotation_LEE, trace[name]) for name in names}


def step(state: State, observation: Observation, ticks: Ticks, settings: TraceSettings) -> tuple[State, Field, Signals]:
    return state, field_at(state, ticks.step), load_coherence(observation)


LAW = Law(TraceSettings, start, step)
