"""What one optimizer step's routing looked like, over all micro-batches and ranks.

The model's sensor adds integers, so the observation is the same however the step's tokens were split. Gathering it is
one all-reduce of one small tensor, and no host waits for it.

Axes: L MoE layers, E experts, C channels of the sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from chronomoe.model.sensor import ASSIGNMENTS, DROPPED, GATE_MASS, PLAIN_CHANNELS, UNIT, Probe
from chronomoe.processes import sum_over_processes


class Observation(NamedTuple):
    tokens_per_expert_LE: Tensor
    """int64 assignments of this step, before any was dropped."""
    gate_mass_LE: Tensor
    """fp64 sum of the mixing weights given to each expert in this step."""
    dropped_LE: Tensor | None = None
    """int64 assignments of this step for which the expert had no room; None: not observed."""
    readings: dict[str, Tensor] = {}  # noqa: RUF012 (never written to)
    """Probe name -> int64 [L, E, channels], in the probe's own units."""
    loss: Tensor | None = None
    """The step's mean loss over micro-batches and ranks, a scalar on the device; gathered only for who asks."""


def read_sensor(sensor_LEC: Tensor, probes: Sequence[Probe] = ()) -> Observation:
    """The observation that a sensor's totals stand for."""
    readings, start = {}, PLAIN_CHANNELS
    for probe in probes:
        readings[probe.name] = sensor_LEC[..., start : start + probe.channels]
        start += probe.channels
    mass_LE = sensor_LEC[..., GATE_MASS].double() / UNIT
    return Observation(sensor_LEC[..., ASSIGNMENTS], mass_LE, sensor_LEC[..., DROPPED], readings)


def gather_and_clear(sensor_LEC: Tensor, probes: Sequence[Probe] = ()) -> Observation:
    """Sum the sensor over all ranks and zero it for the next step. Every rank gets the same observation."""
    total_LEC = sum_over_processes(sensor_LEC)
    sensor_LEC.zero_()
    return read_sensor(total_LEC, probes)


def share(amount_LE: Tensor) -> Tensor:
    """Normalise to sum 1 over experts, in fp32; an empty row reads the fair share 1/E."""
    total_L1 = amount_LE.sum(dim=-1, keepdim=True)
    fair = 1.0 / amount_LE.shape[-1]
    return (amount_LE / total_L1).where(total_L1 > 0, fair).float()


def remember(memory_LE: Tensor, amount_LE: Tensor, half_life_steps: float | None) -> Tensor:
    """Leaky sum m <- 2^(-1/half_life) m + amount; with no half-life it never forgets.

    Its *share* is that of the bias-corrected EMA of the amounts, because the correction cancels in the ratio: the first
    reading is the first sample.
    """
    keep = 1.0 if half_life_steps is None else 0.5 ** (1.0 / half_life_steps)
    return keep * memory_LE + amount_LE
