"""What a controller needs of a model, whosever model it is: the sensor it reads and the field it writes.

Sensor: `sensor_LEC`, what every MoE layer's tokens did since somebody last cleared it (sensor.py).
Actuator: `expert_bias_LE` and `log_temperature_LE`, fp32, saved with the weights. A model reads the field and writes
the sensor; it never writes the field.

Axes: L MoE layers, E experts, C channels (of the sensor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from chronomoe.model.router import Balancer
from chronomoe.model.sensor import PLAIN_CHANNELS, Probe


class Balanced(Protocol):
    """A router, as far as an in-batch solver is concerned."""

    balancer: Balancer | None
    balance_evaluation: bool


class Steerable(nn.Module):
    expert_bias_LE: Tensor
    log_temperature_LE: Tensor
    sensor_LEC: Tensor
    sensing: bool = True
    """Whether training forwards are counted; off while somebody looks ahead without training."""
    fp32_buffers: tuple[str, ...] = ("expert_bias_LE", "log_temperature_LE")
    """Stay in fp32 wherever the model is cast to: bf16 would round a bias of 7 to steps of 0.03."""

    def add_field(self, num_layers: int, num_experts: int) -> None:
        """The buffers, neutral and empty; call `attach` once the routers are there."""
        self.register_buffer("expert_bias_LE", torch.zeros(num_layers, num_experts))
        self.register_buffer("log_temperature_LE", torch.zeros(num_layers, num_experts))
        empty_LEC = torch.zeros(num_layers, num_experts, 0, dtype=torch.int64)
        self.register_buffer("sensor_LEC", empty_LEC, persistent=False)

    def routers(self) -> Iterable[Balanced]:
        """Those that a solver can serve, in the order of their layers."""
        raise NotImplementedError

    def attach(self, probes: list[Probe], balancer: Balancer | None = None, in_evaluation: bool = False) -> None:
        """Let the sensor read `probes` as well, and let `balancer` solve each batch's assignment while training (and,
        if asked, `in_evaluation`)."""
        self.probes = [*self.own_probes(), *probes]
        channels = PLAIN_CHANNELS + sum(probe.channels for probe in self.probes)
        self.sensor_LEC = self.sensor_LEC.new_zeros(*self.expert_bias_LE.shape, channels)
        for router in self.routers():
            router.balancer, router.balance_evaluation = balancer, in_evaluation

    def own_probes(self) -> list[Probe]:
        """What the model's own router asks of the sensor, whoever else watches."""
        return []

    def settle(self, readings: dict[str, Tensor]) -> None:
        """Once per optimizer step, with the step's readings of the sensor over all ranks."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast as usual, but keep the field's precision."""
        kept = {name: getattr(self, name) for name in self.fp32_buffers}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after is not None and after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self
