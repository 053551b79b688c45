"""The Chronovisor's place in Lightning: once per optimizer step, after all micro-batches, before the weights move.

| hook | what happens |
|---|---|
| on_train_start | everything is restored: state moves to the model's device, a resumed run's record is read back |
| on_before_optimizer_step | sensor -> observation (one all-reduce) -> law -> field -> model buffers |
| on_save_checkpoint | the record up to here is written beside the checkpoints |
| state_dict, load_state_dict | controller, clocks, idle counters, MaxVio history |

Evaluation has no hook here: it never ticks, counts or steers. The keys of `metrics()`:

| key | meaning (mean over layers unless said) |
|---|---|
| router/max_vio, router/max_vio_worst | max load / mean load - 1; worst is the maximum over layers |
| router/min_vio, router/load_cv, router/load_entropy, router/dead_expert_frac | see metrics/load.py |
| router/dropped_frac | assignments without room in their expert, of all; with a capacity |
| router/unserved_frac | tokens that no expert took; with expert choice |
| router/layer_NN/max_vio, router/layer_NN/load_entropy | per layer |
| chrono/coherence, chrono/coherence_change, chrono/gate | the law's sensor and gate |
| chrono/pressure, chrono/lens, chrono/bias, chrono/log_temperature | root mean square over layers and experts, logits |
| chrono/bias_max | largest absolute bias, logits |
| chrono/follow, chrono/knowledge | does routing follow the field, does the field know the load: metrics/alignment.py |
| chrono/phi_loo, chrono/phi_excess, chrono/phi_cross_token, chrono/phi_documented | with chrono.phi: see phi.py |
| chrono/phi_fast, chrono/phi_mid, chrono/phi_slow, chrono/phi_degradation | memories of the excess: phi_memory.py |
| chrono/phi_stale_steps | longest time any expert has been without a reading of phi, steps |
| chrono/kappa | position of the meta-knob, where there is one |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.law import Field, Signals
from chronomoe.chrono.metrics import load as metrics
from chronomoe.chrono.observation import Observation, gather_and_clear
from chronomoe.chrono.record import RoutingRecord
from chronomoe.chrono.watch import Watch
from chronomoe.model.lm import LanguageModel
from chronomoe.model.steerable import Steerable
from chronomoe.processes import mean_over_processes


class ChronovisorCallback(L.Callback):
    """Watches and steers `model`; its record is written to `record_path` whenever a checkpoint is."""

    def __init__(self, controller: Chronovisor, model: LanguageModel, *, max_steps: int, record_path: Path) -> None:
        self.controller, self.model, self.record_path = controller, model, record_path
        model.attach(
            controller.probes(model.router_settings.top_k, model.settings.dim),
            controller.balancer(),
            controller.solves_evaluation,
        )
        self.record = RoutingRecord()
        self.idle_steps_LE = torch.zeros(model.expert_bias_LE.shape, dtype=torch.int64)
        self.max_vio_history = torch.full((max_steps,), float("nan"))
        self.watch = Watch(
            *model.expert_bias_LE.shape, phi=controller.measures_phi, alone=model.router_settings.top_k == 1
        )
        self._last: tuple[Observation, Field] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = self.model.expert_bias_LE.device
        self.controller.to(device)
        self.watch.to(device)
        self.idle_steps_LE, self.max_vio_history = self.idle_steps_LE.to(device), self.max_vio_history.to(device)
        self.record = RoutingRecord.load(self.record_path, last_step=self.controller.step_count, device=device)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        bias_LE = self.model.expert_bias_LE.clone()  # what was in force during this step
        loss = mean_loss(pl_module) if self.controller.needs_loss else None
        observation, field = steer(self.model, self.controller, loss)
        counts_LE = observation.tokens_per_expert_LE
        self.watch.see(observation, bias_LE)
        self.idle_steps_LE = metrics.count_idle_steps(self.idle_steps_LE, counts_LE)
        step = self.controller.step_count
        if step <= len(self.max_vio_history):
            self.max_vio_history[step - 1] = metrics.max_vio(counts_LE).mean()
        self.record.append(step, counts_LE, field, self.controller.signals, self.watch.phi_LE)
        self._last = observation, field

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            self.record.save(self.record_path)

    def metrics(self) -> dict[str, Tensor]:
        """The step's metrics as scalars on the device; see the table above. Empty before the first step."""
        if self._last is None:
            return {}
        observation, field = self._last
        dead = metrics.dead_expert_frac(self.idle_steps_LE, self.controller.settings.dead_after_steps)
        loads = load_metrics(observation.tokens_per_expert_LE, dead)
        if observation.dropped_LE is not None and self.model.router_settings.capacity_factor is not None:
            loads["router/dropped_frac"] = (
                observation.dropped_LE.sum(-1) / observation.tokens_per_expert_LE.sum(-1)
            ).mean()
        if "experts_per_token" in observation.readings:  # row n: tokens that n experts took
            tokens_LE = observation.readings["experts_per_token"][..., 0]
            loads["router/unserved_frac"] = (tokens_LE[:, 0] / tokens_LE.sum(dim=-1)).mean()
        return loads | control_metrics(field, self.controller.signals) | self.watch.metrics

    def longest_idle_steps(self) -> Tensor:
        """Optimizer steps the most neglected expert has been without a token, a scalar on the device."""
        return self.idle_steps_LE.max()

    def state_dict(self) -> dict[str, Any]:
        return {
            "controller": self.controller.state_dict(),
            "idle_steps_LE": self.idle_steps_LE,
            "watch": self.watch.state,
            "max_vio_history": self.max_vio_history,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.controller.load_state_dict(state_dict["controller"])
        self.idle_steps_LE = state_dict["idle_steps_LE"]
        self.watch.state = dict(state_dict["watch"])
        known = min(len(self.max_vio_history), len(state_dict["max_vio_history"]))
        self.max_vio_history[:known] = state_dict["max_vio_history"][:known]


def mean_loss(module: Any) -> Tensor:
    """The step's cross-entropy so far, over its micro-batches and all ranks, on the device."""
    return mean_over_processes(module.loss_sums["loss"] / module.micro_batches)


def steer(model: Steerable, controller: Chronovisor, loss: Tensor | None = None) -> tuple[Observation, Field]:
    """Sensor to field: read and clear what the model's routing did in this step, and set what it shall do in the
    next."""
    observation = gather_and_clear(model.sensor_LEC, model.probes)._replace(loss=loss)
    field = controller.tick(observation)
    model.expert_bias_LE.copy_(field.bias_LE)
    model.log_temperature_LE.copy_(field.log_temperature_LE)
    model.settle(observation.readings)
    return observation, field


def load_metrics(counts_LE: Tensor, dead_expert_frac_L: Tensor) -> dict[str, Tensor]:
    max_vio_L, entropy_L = metrics.max_vio(counts_LE), metrics.load_entropy(counts_LE)
    values = {
        "router/max_vio": max_vio_L.mean(),
        "router/max_vio_worst": max_vio_L.max(),
        "router/min_vio": metrics.min_vio(counts_LE).mean(),
        "router/load_cv": metrics.load_cv(counts_LE).mean(),
        "router/load_entropy": entropy_L.mean(),
        "router/dead_expert_frac": dead_expert_frac_L.mean(),
    }
    for layer, (vio, entropy) in enumerate(zip(max_vio_L, entropy_L, strict=True)):
        values |= {f"router/layer_{layer:02d}/max_vio": vio, f"router/layer_{layer:02d}/load_entropy": entropy}
    return values


def control_metrics(field: Field, signals: Signals) -> dict[str, Tensor]:
    values = {
        "chrono/bias": root_mean_square(field.bias_LE),
        "chrono/bias_max": field.bias_LE.abs().max(),
        "chrono/log_temperature": root_mean_square(field.log_temperature_LE),
    }
    values |= {f"chrono/{name[:-2]}": signal_L.mean() for name, signal_L in signals.items() if name.endswith("_L")}
    return values | {f"chrono/{n[:-3]}": root_mean_square(x_LE) for n, x_LE in signals.items() if n.endswith("_LE")}


def root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
