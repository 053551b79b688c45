"""Quantile Balancing: price every expert so that just its share of the last batch would have wanted it.

    alpha_t = (k+1)-th largest over e of (s_te + b_e)
    exact:      q_e = (kT/E + 1)-th largest over t of (s_te - alpha_t),  b' = -q             (Megatron-LM)
    histogram:  b'_e = k/E quantile over t of (alpha_t - s_te), from pooled histograms       (arXiv 2607.24653)
    b <- centre(ema b + (1 - ema) b')
Exact averages the quantiles of the step's micro-batches; the histogram pools them first, but needs scores in [0, 1].

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.laws.law import ChronoSettings, Field, Law, Signals, State, bias_only, centred, load_coherence
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.probes import decode_mean, exact_price, histogram_bias, price_histogram
from chronomoe.model.sensor import Probe
from chronomoe.settings import setting


@dataclass(kw_only=True)
class QuantileSettings(ChronoSettings):
    form: str = setting("exact", choices=["exact", "histogram"])
    """Order statistics of each micro-batch, averaged; or 1,000 bins pooled over all of them (scores in [0, 1] only)."""
    ema: float = setting(0.0, low=0.0, high=0.999)
    """Part of the previous bias that is kept at each optimizer step."""


def start(num_layers: int, num_experts: int, settings: QuantileSettings, generator: torch.Generator) -> State:
    remembers = settings.ema > 0 or settings.form == "histogram"  # a histogram counts from the bias in force
    return {"bias_LE": torch.zeros(num_layers, num_experts)} if remembers else {}


def step(
    state: State, observation: Observation, ticks: Ticks, settings: QuantileSettings
) -> tuple[State, Field, Signals]:
    if settings.form == "exact":
        found_LE = -decode_mean(observation.readings["price"])
    else:
        counts_LE = observation.tokens_per_expert_LE
        histogram_LEC = observation.readings["price_histogram"]
        share_L1 = counts_LE.sum(-1, keepdim=True) / histogram_LEC.sum(-1).sum(-1, keepdim=True).clamp(min=1)
        found_LE = histogram_bias(histogram_LEC, state["bias_LE"], share_L1)
    if "bias_LE" not in state:
        bias_LE = centred(found_LE)
        return {}, bias_only(bias_LE), load_coherence(observation)
    bias_LE = centred(found_LE.lerp(state["bias_LE"], settings.ema))
    return {"bias_LE": bias_LE}, bias_only(bias_LE), load_coherence(observation)


def probes(settings: QuantileSettings, top_k: int) -> list[Probe]:
    return [exact_price(top_k) if settings.form == "exact" else price_histogram(top_k)]


LAW = Law(QuantileSettings, start, step, probes=probes)
