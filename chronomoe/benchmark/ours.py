"""chronomoe as a system of the benchmark: with the parts and the process-wide settings that training uses, and the
controller as its callback runs.

The names this file builds: `chronomoe`, and `dense`, the floor: one layer as wide as all the experts a token visits in
the place of each MoE layer, equal active parameters and nothing to route.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from chronomoe.benchmark.learner import Learner, Losses
from chronomoe.benchmark.parts import part
from chronomoe.benchmark.systems import System
from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.config import TrainConfig
from chronomoe.model.lm import LanguageModel
from chronomoe.training.allocator import keep_freed_memory
from chronomoe.training.autotune import Workload, measure, use
from chronomoe.training.optimizer import build_optimizer
from chronomoe.training.routing_losses import RoutingLosses


def build(system: System, config: TrainConfig, batch_BS: Tensor, weights: dict[str, Tensor] | None) -> Learner:
    device, dtype = batch_BS.device, torch.bfloat16 if system.dtype == "bf16" else torch.float32
    if device.type == "cpu":
        keep_freed_memory()
    dense = system.name == "dense"
    settings = replace(config.model, dense=dense)
    with device:
        model = LanguageModel(settings, config.router, config.chrono.actuation)
    if weights is not None and not dense:
        model.load_state_dict(weights)
    if dtype == torch.bfloat16:
        model.keep_working_copies(dtype, half_gradients=device.type == "cpu")
    sequences, length = batch_BS.shape
    kernels = measure(settings, config.router, Workload(batch=sequences, length=length - 1, dtype=dtype, device=device))
    use(model, kernels)
    note = "the floor: no experts, equal active parameters" if dense else str(kernels)
    return learner(model, config, control=controlled(model, config) if system.control else None, note=note)


def learner(
    model: LanguageModel, config: TrainConfig, *, control: Callable[[bool], None] | None = None, note: str = ""
) -> Learner:
    routing_losses = RoutingLosses(model, config.router)

    def losses(ids_BS: Tensor, targets_BS: Tensor) -> Losses:
        output = model(ids_BS)
        with part("head and loss"):
            loss = output.loss(targets_BS)
        with part("router"):
            weighted = routing_losses(output, alone=True)
            total = loss + sum(weight * value for weight, value in weighted.values())
        return Losses(loss, total)

    optimizer = build_optimizer(model, config.optim, fused=True)
    return Learner(model, losses, lambda ids_BS: model(ids_BS).logits_BSV, optimizer, optimizer.clip, control, note)


def controlled(model: LanguageModel, config: TrainConfig) -> Callable[[bool], None]:
    """What the callback does in a step; where metrics are fetched, computing them and bringing them to the host too."""
    controller = Chronovisor(config.chrono, *model.expert_bias_LE.shape)
    callback = ChronovisorCallback(controller, model, max_steps=1, record_path=Path("never.npz"))
    callback.on_train_start(None, None)  # type: ignore[arg-type]

    def step(fetch: bool) -> None:
        callback.on_before_optimizer_step(None, None, None)  # type: ignore[arg-type]
        if fetch:
            torch.stack([value.double() for value in callback.metrics().values()]).tolist()

    return step
