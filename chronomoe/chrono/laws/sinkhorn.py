"""Sinkhorn: each training batch is routed by its doubly normalised affinities (Megatron-LM; S-BASE, arXiv 2202.01169).

    A = exp(z) ;  d0_t = 1/(T sum_e d1_e A_te),  d1_e = 1/(E sum_t d0_t A_te)  until mean |change of d1| < tolerance
    select the top-k of d0 A d1
Without state and not causal. Evaluation and decoding take the plain top-k, as published: the model is tested on a rule
it was not trained with. Megatron-LM's mixing weights are those of router.gate=softmax.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, load_coherence, neutral
from chronomoe.chrono.observation import Observation
from chronomoe.model.assignment import sinkhorn
from chronomoe.model.router import Balancer
from chronomoe.settings import setting


@dataclass(kw_only=True)
class SinkhornSettings(ChronoSettings):
    tolerance: float = setting(low=0.0)
    """Mean change of the experts' factors below which they count as settled."""
    max_iterations: int = setting(low=1)
    """Rounds of normalisation at most."""


def start(num_layers: int, num_experts: int, settings: SinkhornSettings, generator: torch.Generator) -> State:
    return {}


def step(
    state: State, observation: Observation, ticks: Ticks, settings: SinkhornSettings
) -> tuple[State, Field, Signals]:
    signals = load_coherence(observation)
    return state, neutral(observation.tokens_per_expert_LE.float()), signals


def balancer(settings: SinkhornSettings) -> Balancer:
    def solve(
        logits_TE: Tensor, scores_TE: Tensor, expert_bias_E: Tensor, top_k: int, real_T: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return sinkhorn(logits_TE, settings.max_iterations, settings.tolerance, real_T), None

    return solve


LAW = Law(SinkhornSettings, start, step, balancer=balancer)
