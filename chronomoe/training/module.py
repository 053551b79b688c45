"""The Lightning side of the model: losses of a step and of an evaluation, optimizer, sharding.

Axes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from chronomoe.model.lm import LanguageModel, number_documents
from chronomoe.training.optimizer import build_optimizer, lr_factor
from chronomoe.training.settings import OptimSettings, TrainerSettings

Batch = dict[str, Tensor]


class LanguageModule(L.LightningModule):
    """`loss_sum` and `micro_batches` gather one optimizer step's training loss on the device; Telemetry clears them."""

    def __init__(
        self, model: LanguageModel, optim: OptimSettings, trainer: TrainerSettings, *, end_of_document: int
    ) -> None:
        super().__init__()
        self.model, self.optim_settings, self.trainer_settings = model, optim, trainer
        self.end_of_document = end_of_document
        self.gradient_norm: Tensor | None = None
        self.loss_sum, self.micro_batches = torch.zeros(()), 0
        self.val_loss_sum, self.val_tokens = torch.zeros(()), 0

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

    def next_token_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token."""
        ids_BS = batch["input_ids"]
        document_BS = number_documents(ids_BS, self.end_of_document) if self.model.settings.document_mask else None
        logits_BSV = self.model(ids_BS, document_BS=document_BS).logits_BSV
        return cross_entropy(logits_BSV.flatten(0, 1).float(), batch["targets"].flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.next_token_loss(batch)
        self.loss_sum = self.loss_sum.to(loss.device) + loss.detach()
        self.micro_batches += 1
        return loss

    def on_validation_epoch_start(self) -> None:
        self.val_loss_sum, self.val_tokens = torch.zeros((), device=self.device), 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        tokens = batch["targets"].numel()
        self.val_loss_sum += self.next_token_loss(batch) * tokens
        self.val_tokens += tokens

    def on_validation_epoch_end(self) -> None:
        """Every rank holds as many tokens, so the mean of means is the mean."""
        loss = self.val_loss_sum / self.val_tokens
        self.log("val/loss", loss, sync_dist=True, logger=False)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and keep the norm for the log; every strategy takes this path."""
        limit = self.trainer_settings.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def lr_of_step(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        return self.optim_settings.lr * lr_factor(step, self.trainer_settings.max_steps, self.optim_settings)

    def configure_optimizers(self) -> Any:
        # torch's fused AdamW is several times faster on CPU and GPU; on CPU it does not take sharded tensors.
        sharded_on_cpu = self.trainer_settings.strategy == "fsdp" and self.device.type == "cpu"
        optimizer = build_optimizer(self.model, self.optim_settings, fused=not sharded_on_cpu)
        max_steps = self.trainer_settings.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, max_steps, self.optim_settings)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
