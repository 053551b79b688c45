"""BIP: prices solved within each batch by a few rounds of dual descent (arXiv 2502.15451).

    pi_t = max(0, (k+1)-th largest over e of (s_te - q_e))
    q_e = max(0, (kT/E + 1)-th largest over t of (s_te - pi_t))
    route the same batch by s - q
It uses tokens to come, so it is no causal rule. Training routes so; evaluation and decoding use the last prices as a
fixed bias, unless `evaluation=batch` asks for the published rule there too (then a model cannot decode). Over
micro-batches and ranks the prices are averaged.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, bias_only, load_coherence
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.probes import decode_mean, solved_price
from chronomoe.model.assignment import solve_prices
from chronomoe.model.router import Balancer
from chronomoe.settings import setting


@dataclass(kw_only=True)
class BipSettings(ChronoSettings):
    rounds: int = setting(low=1)
    """Rounds of dual descent in each batch (T_it)."""
    evaluation: str = setting("frozen", choices=["frozen", "batch"])
    """Evaluate with the last prices as a fixed bias, or solve each evaluated batch too (and then never decode)."""


def start(num_layers: int, num_experts: int, settings: BipSettings, generator: torch.Generator) -> State:
    return {}  # the prices live in the field: each batch starts from the last ones


def step(state: State, observation: Observation, ticks: Ticks, settings: BipSettings) -> tuple[State, Field, Signals]:
    return state, bias_only(-decode_mean(observation.readings["price"])), load_coherence(observation)


def balancer(settings: BipSettings) -> Balancer:
    def solve(
        logits_TE: Tensor, scores_TE: Tensor, expert_bias_E: Tensor, top_k: int, real_T: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return solve_prices(scores_TE, -expert_bias_E, top_k, settings.rounds, real_T)

    return solve


LAW = Law(BipSettings, start, step, probes=lambda settings, top_k: [solved_price()], balancer=balancer)
