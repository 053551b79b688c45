"""The meta-knob kappa in [-1, 1]: one number that turns pressure and temperature up or down together.

    pressure <- pressure exp(kappa/2) ;  T <- T exp(2 kappa/5)
fixed:     kappa = value
schedule:  value until hold_frac of the run, then half a cosine down (or up) to end_value at the run's end
rule:      on micro ticks, with l the loss's EMA and h = H(gate mass)/ln E:
           target = .3 [loss has not fallen on more than 3 leaky counts] - .2 [it fell by more than .01]
                    - .1 [h > .96] + .1 [h < .48] ;   kappa <- .7 kappa + .3 clip(kappa + target, -1, 1)
The rule is the documented one without its phase terms; its entropy band, 1.5 -+ .5 nats for 8 experts, is written
relative to ln E. It is the one user of the loss; everything stays on the device.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from chronomoe.chrono import coherence
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.observation import Observation, share
from chronomoe.settings import setting

PRESSURE_EXPONENT, TEMPERATURE_EXPONENT = 0.5, 0.4
KEEP = 0.7
LOSS_KEEP = 0.9
"""Share of the loss's memory kept at each optimizer step (half-life 6.6)."""
FELL_BY, PATIENCE = 0.01, 3.0
LOW_ENTROPY, HIGH_ENTROPY = 1.0 / math.log(8), 2.0 / math.log(8)
State = dict[str, Tensor]


@dataclass(kw_only=True)
class KnobSettings:
    kind: str = setting("fixed", choices=["fixed", "schedule", "rule"])
    """What turns the knob."""
    value: float = setting(0.0, low=-1.0, high=1.0)
    """kappa itself, or where its schedule begins; the rule begins at 0."""
    end_value: float = setting(-0.3, low=-1.0, high=1.0)
    """Where the schedule ends."""
    hold_frac: float = setting(0.1, low=0.0, high=1.0)
    """Part of the run for which the schedule holds its first value."""
    run_steps: int = setting(low=1)
    """Optimizer steps of the run, which the schedule's fractions are of."""


def start(settings: KnobSettings) -> State:
    if settings.kind != "rule":
        return {}
    zero = torch.zeros(())
    return {f"knob_{name}": zero.clone() for name in ("kappa", "loss_sum", "loss_weight", "lowest_loss", "stalled")}


def scheduled(step: int, settings: KnobSettings) -> float:
    """kappa of a schedule at optimizer step `step`, a host number."""
    progress = min(1.0, step / settings.run_steps)
    if progress <= settings.hold_frac:
        return settings.value
    along = (progress - settings.hold_frac) / (1.0 - settings.hold_frac)
    return settings.end_value + (settings.value - settings.end_value) * 0.5 * (1.0 + math.cos(math.pi * along))


def step(state: State, observation: Observation, ticks: Ticks, settings: KnobSettings) -> State:
    """Advance the rule; the other kinds have no state."""
    if settings.kind != "rule":
        return {}
    assert observation.loss is not None, "the rule needs the step's loss"
    loss_sum = LOSS_KEEP * state["knob_loss_sum"] + (1.0 - LOSS_KEEP) * observation.loss
    loss_weight = LOSS_KEEP * state["knob_loss_weight"] + (1.0 - LOSS_KEEP)
    after = {"knob_loss_sum": loss_sum, "knob_loss_weight": loss_weight}
    if not ticks.micro:
        return state | after
    loss, first = loss_sum / loss_weight, state["knob_lowest_loss"] == 0
    fall = (state["knob_lowest_loss"] - loss).where(~first, 0.0)
    fell = fall > FELL_BY
    stalled = (state["knob_stalled"] - 1.0).clamp(min=0.0).where(fell | first, state["knob_stalled"] + 1.0)
    mass_LE = share(observation.gate_mass_LE)
    entropy = 1.0 - coherence.entropy(mass_LE, mass_LE).mean()
    target = 0.3 * (stalled > PATIENCE) - 0.2 * fell - 0.1 * (entropy > HIGH_ENTROPY) + 0.1 * (entropy < LOW_ENTROPY)
    kappa = KEEP * state["knob_kappa"] + (1.0 - KEEP) * (state["knob_kappa"] + target).clamp(-1.0, 1.0)
    lowest = loss.where(first, torch.minimum(loss, state["knob_lowest_loss"]))
    return after | {"knob_kappa": kappa, "knob_lowest_loss": lowest, "knob_stalled": stalled}


def kappa(state: State, ticks: Ticks, settings: KnobSettings) -> Tensor | float:
    """The knob's position; a host number unless a rule turns it."""
    if settings.kind == "rule":
        return state["knob_kappa"]
    return settings.value if settings.kind == "fixed" else scheduled(ticks.step, settings)


def factor(exponent: float, kappa: Tensor | float) -> Tensor | float:
    """exp(exponent kappa)."""
    return (exponent * kappa).exp() if isinstance(kappa, Tensor) else math.exp(exponent * kappa)
