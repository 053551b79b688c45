"""The Lightning side of the model: losses of a step and of an evaluation, optimizer, sharding.

Whatever is random in a forward pass (a router's jitter) is drawn from a seed that follows from the run's seed and the
micro-batch's place in the run, so a resumed run draws what the uninterrupted one draws.

Axes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from chronomoe.chrono.metrics import confidence
from chronomoe.chrono.metrics.confidence import Tally
from chronomoe.model.lm import LanguageModel, Output, number_documents
from chronomoe.processes import sum_over_processes
from chronomoe.training.adamw import AdamW
from chronomoe.training.autotune import Kernels, use
from chronomoe.training.optimizer import build_optimizer, lr_factor
from chronomoe.training.probe_batch import ProbeBatch
from chronomoe.training.routing_losses import RoutingLosses
from chronomoe.training.settings import OptimSettings, TrainerSettings

Batch = dict[str, Tensor]


class LanguageModule(L.LightningModule):
    """`loss_sums` and `micro_batches` gather one optimizer step's losses on the device; Telemetry clears them."""

    def __init__(
        self,
        model: LanguageModel,
        optim: OptimSettings,
        trainer: TrainerSettings,
        *,
        seed: int,
        end_of_document: int,
    ) -> None:
        super().__init__()
        self.model, self.optim_settings, self.trainer_settings = model, optim, trainer
        self.seed, self.end_of_document = seed, end_of_document
        self.kernels = Kernels()
        self.routing_losses = RoutingLosses(model, model.router_settings)
        self.gradient_norm: Tensor | None = None
        self.loss_sums: dict[str, Tensor] = {}
        self.micro_batches = 0
        self.val_loss_sum, self.val_tokens = torch.zeros(()), 0
        self.val_tally: Tally | None = None
        self.probe_batch, self.val_churn = ProbeBatch(model), dict[str, Tensor]()

    def use_kernels(self, kernels: Kernels) -> None:
        self.kernels = kernels
        use(self.model, kernels)

    def configure_model(self) -> None:
        if self.trainer_settings.strategy != "fsdp" or hasattr(self.model, "set_requires_gradient_sync"):
            return  # Lightning calls this more than once
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]  # type: ignore[index]
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        if self.model.embedding.weight.is_meta:  # too large to be built whole: each rank fills its own shards
            self.model.to_empty(device=self.device)
            self.model.reset_parameters()

    def forward(self, input_ids_BS: Tensor) -> Output:
        masks = self.model.settings.document_mask
        document_BS = number_documents(input_ids_BS, self.end_of_document) if masks else None
        return self.model(input_ids_BS, document_BS=document_BS)

    def training_forward(self, input_ids_BS: Tensor, micro_batch: int) -> Output:
        """`micro_batch` counts within the optimizer step."""
        place = self.trainer.global_step * self.trainer_settings.accumulate_grad_batches + micro_batch
        torch.manual_seed(hash((self.seed, place, self.global_rank)))
        return self(input_ids_BS)

    def look_ahead(self) -> None:
        """Let the routing losses see the loads of the whole optimizer step before its first micro-batch."""
        batches = self.trainer.datamodule.micro_batches(self.trainer.global_step)  # type: ignore[attr-defined]
        ids = (batch["input_ids"].to(self.device) for batch in batches)
        self.routing_losses.look_ahead(
            partial(self.training_forward, ids_BS, micro_batch) for micro_batch, ids_BS in enumerate(ids)
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        alone = self.trainer_settings.accumulate_grad_batches == 1
        if self.routing_losses.looks_ahead and not alone and self.micro_batches == 0:
            self.look_ahead()
        output = self.training_forward(batch["input_ids"], self.micro_batches)
        loss = output.loss(batch["targets"])
        weighted = self.routing_losses(output, alone=alone)
        for name, value in {"loss": loss, **{name: value for name, (_, value) in weighted.items()}}.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + value.detach()
        self.micro_batches += 1
        return loss + sum(weight * value for weight, value in weighted.values())

    def on_validation_epoch_start(self) -> None:
        self.val_loss_sum, self.val_tokens = torch.zeros((), device=self.device), 0
        self.val_tally = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        tokens = batch["targets"].numel()
        output = self(batch["input_ids"])
        if batch_idx == 0:  # the same tokens at every evaluation
            field = self.model.expert_bias_LE, self.model.log_temperature_LE
            self.val_churn = self.probe_batch.see(batch["input_ids"], output.routings, *field)
        self.val_loss_sum += output.loss(batch["targets"]) * tokens
        self.val_tokens += tokens
        if output.routings:
            seen = [(r.logits_TE, r.topk_expert_ids_TK, r.kept_TK, r.assigned_TK) for r in output.routings]
            found = confidence.tally(seen, gate=self.model.router_settings.gate)
            self.val_tally = found if self.val_tally is None else confidence.add(self.val_tally, found)

    def on_validation_epoch_end(self) -> None:
        """Every rank holds as many tokens, so the mean of means is the mean; routing is summed before it is read."""
        means = {"val/loss": self.val_loss_sum / self.val_tokens} | self.val_churn
        values = dict(means)
        if self.val_tally is not None:
            values |= confidence.read(Tally(*map(sum_over_processes, self.val_tally)))
        for name, value in values.items():
            self.log(name, value, sync_dist=name in means, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["probe_batch"] = self.probe_batch.state_dict()
        checkpoint["kernels"] = asdict(self.kernels)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.probe_batch.load_state_dict(checkpoint.get("probe_batch", {}))  # older ones have none
        self.use_kernels(Kernels(**checkpoint.get("kernels", {})))  # others would round differently

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and keep the norm for the log; every strategy takes this path."""
        limit = self.trainer_settings.gradient_clip or float("inf")
        inner = getattr(optimizer, "optimizer", optimizer)  # Lightning's wrapper keeps it there
        if isinstance(inner, AdamW) and self.trainer_settings.strategy != "fsdp":
            self.gradient_norm = inner.clip(limit)
            return
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def lr_of_step(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        return self.optim_settings.lr * lr_factor(step, self.trainer_settings.max_steps, self.optim_settings)

    def keep_working_copies(self) -> None:
        """Under bf16-mixed, cast weights once per step. Sharding has bf16 weights of its own; only where no gradients
        are summed can they stay in bf16, and only the processor's optimizer takes them so."""
        settings = self.trainer_settings
        if self.trainer.precision != "bf16-mixed" or settings.strategy == "fsdp":
            return
        alone = settings.strategy == "single" and settings.accumulate_grad_batches == 1
        self.model.keep_working_copies(torch.bfloat16, half_gradients=alone and self.device.type == "cpu")

    def configure_optimizers(self) -> Any:
        self.keep_working_copies()
        # torch's fused AdamW is several times faster on CPU and GPU; on CPU it does not take sharded tensors.
        sharded_on_cpu = self.trainer_settings.strategy == "fsdp" and self.device.type == "cpu"
        optimizer = build_optimizer(self.model, self.optim_settings, fused=not sharded_on_cpu)
        max_steps = self.trainer_settings.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, max_steps, self.optim_settings)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
