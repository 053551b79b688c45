"""The temperature field: how sharply each expert's logits count. Pure functions; `off` leaves every log-temperature 0.

documented:  T_fast = base (1 + .5 (1 - C)) (1 + .3 d) (1 + .2 (1 - r)),  T = T_fast * T_global * T_local
             with d the drift |share - 1/E| over its own maximum and r the share over its own maximum
structural:  tau <- tau + eta (bound clip(utilisation - 1, -1, 1) - tau), centred over experts;  T = exp(tau)
The structural form pulls the same way as pressure: an over-used expert is hotter, so its lead counts for less. The
documented one does not, and is kept because it was published (docs/laws.md).

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono.clocks import Ticks
from chronomoe.settings import setting

COHERENCE_HEAT, DRIFT_HEAT, RELIABILITY_HEAT = 0.5, 0.3, 0.2
FAST_RANGE = (0.3, 3.0)
ROUTER_RANGE = (0.1, 10.0)
State = dict[str, Tensor]


@dataclass(kw_only=True)
class TemperatureSettings:
    kind: str = setting("off", choices=["off", "documented", "structural"])
    """Which temperature field."""
    eta: float = setting(0.01, low=0.0, high=1.0)
    """Rate of each layer's slow temperature per micro tick; 0 freezes it."""
    eta_global: float | None = setting(None, low=0.0, high=1.0)
    """Rate of the slow temperature shared by all layers (documented form only); null is half of `eta`."""
    bound: float = setting(0.5, low=0.0)
    """Largest log-temperature the structural form aims at."""


def start(num_layers: int, num_experts: int, settings: TemperatureSettings) -> State:
    ones_LE = torch.ones(num_layers, num_experts)
    if settings.kind == "documented":
        return {
            "fast_temperature_LE": ones_LE,
            "local_temperature_LE": ones_LE.clone(),
            "global_temperature_E": torch.ones(num_experts),
            "effective_temperature_LE": ones_LE.clone(),
        }
    if settings.kind == "structural":
        return {"log_temperature_LE": torch.zeros(num_layers, num_experts)}
    return {}


def step(state: State, share_LE: Tensor, coherence: Tensor, ticks: Ticks, settings: TemperatureSettings) -> State:
    """Advance on micro ticks. `coherence` is a scalar in [0, 1] (documented form)."""
    if not ticks.micro or settings.kind == "off":
        return state
    if settings.kind == "structural":
        over_used_LE = (share_LE.shape[-1] * share_LE - 1.0).clamp(-1.0, 1.0)
        slow_LE = state["log_temperature_LE"].lerp(settings.bound * over_used_LE, settings.eta)
        return {"log_temperature_LE": slow_LE - slow_LE.mean(dim=-1, keepdim=True)}
    eta_global = 0.5 * settings.eta if settings.eta_global is None else settings.eta_global
    # The shared temperature follows the fast one of the previous micro tick: published order, one tick of lag.
    global_E = state["global_temperature_E"].lerp(state["fast_temperature_LE"].mean(dim=0), eta_global)
    fast_LE = documented_fast(share_LE, coherence)
    local_LE = state["local_temperature_LE"].lerp(fast_LE, settings.eta)
    return {
        "fast_temperature_LE": fast_LE,
        "local_temperature_LE": local_LE,
        "global_temperature_E": global_E,
        "effective_temperature_LE": fast_LE * global_E * local_LE,
    }


def documented_fast(share_LE: Tensor, coherence: Tensor) -> Tensor:
    """T_fast of the documented law, in [1, 2.34]. Its drift is scaled by its own maximum, so it ignores how large it
    is."""
    drift_LE = (share_LE - 1.0 / share_LE.shape[-1]).abs()
    largest_L1 = drift_LE.amax(dim=-1, keepdim=True)
    relative_LE = drift_LE / largest_L1.where(largest_L1 > 0, 1.0)
    reliability_LE = share_LE / share_LE.amax(dim=-1, keepdim=True)
    heat_LE = (1 + DRIFT_HEAT * relative_LE) * (1 + RELIABILITY_HEAT * (1 - reliability_LE))
    return ((1 + COHERENCE_HEAT * (1 - coherence)) * heat_LE).clamp(*FAST_RANGE)


def log_temperature(state: State, like_LE: Tensor) -> Tensor:
    """The field's log-temperature [L, E]; zeros (shaped as `like_LE`) when there is no temperature."""
    if "effective_temperature_LE" in state:
        return state["effective_temperature_LE"].clamp(*ROUTER_RANGE).log()
    return state.get("log_temperature_LE", torch.zeros_like(like_LE))
