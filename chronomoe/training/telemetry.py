"""One row a logged step, everything in one transfer from the device; and the alarms that end a broken run.

| key | meaning |
|---|---|
| train/loss | mean cross-entropy of the step's tokens over micro-batches and ranks, nats per token |
| train/lr, train/grad_norm | learning rate used; global gradient norm before clipping |
| train/tokens | tokens trained on so far; in the rows of evaluations too, whose axis it may be |
| throughput/tokens_per_sec | over the steps since the last row, evaluation left out |
| train/load_balancing_loss, train/router_z_loss | before their weights; only where the weight is not 0 |
| val/loss, val/perplexity | mean cross-entropy of the evaluation and its exponential |
| val/max_vio and others | routing of all evaluated tokens: see chrono/metrics/confidence.py, `read_layers` |
| val/churn, val/churn_field, val/churn_chance | how far one batch's selection moved since last time: probe_batch.py |

The keys of the routing metrics are listed in `chronomoe/chrono/callback.py`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.processes import mean_over_processes
from chronomoe.settings import RunFailed
from chronomoe.training.module import LanguageModule
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import is_evaluated


class Telemetry(L.Callback):
    """Logs to every logger of the trainer. `chronovisor` is None for a dense model."""

    def __init__(
        self, settings: TrainerSettings, chronovisor: ChronovisorCallback | None, *, tokens_per_step: int
    ) -> None:
        assert settings.log_every_steps is not None  # settled for the device by now
        self.settings, self.chronovisor, self.tokens_per_step = settings, chronovisor, tokens_per_step
        saved_every = settings.keep_every_steps or settings.checkpoint_every_steps
        self._logged_every = (settings.log_every_steps, settings.checkpoint_every_steps, saved_every)
        self.latest: dict[str, float] = {}
        self._steps_done = 0
        self._row_step, self._row_time, self._paused_seconds = 0, time.perf_counter(), 0.0
        self.training_seconds, self.training_steps = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps_done = self._row_step = trainer.global_step
        self._row_time = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._steps_done:
            return  # an accumulation window is still open
        self._steps_done = step
        if self._is_logged(step):
            self._log_row(trainer, pl_module, step)
        pl_module.loss_sums = {}
        pl_module.micro_batches = 0
        if step == self.settings.max_steps:
            trainer.should_stop = True  # Lightning then evaluates a last time

    def _is_logged(self, step: int) -> bool:
        """Also the steps that may be saved, so that nothing is saved that has not been looked at."""
        return is_evaluated(step, self.settings) or any(step % period == 0 for period in self._logged_every)

    @torch.no_grad()
    def _log_row(self, trainer: L.Trainer, module: LanguageModule, step: int) -> None:
        assert module.gradient_norm is not None  # clipping ran before the step that is logged here
        losses = {name: mean_over_processes(total / module.micro_batches) for name, total in module.loss_sums.items()}
        values = {f"train/{name}": loss for name, loss in losses.items()}
        values["train/grad_norm"] = module.gradient_norm
        if self.chronovisor is not None:
            values |= self.chronovisor.metrics()
            values["idle"] = self.chronovisor.longest_idle_steps()
        numbers = torch.stack([value.to(module.device, torch.float64) for value in values.values()]).tolist()
        row = dict(zip(values, numbers, strict=True))
        idle = row.pop("idle", 0.0)
        row |= {"train/lr": module.lr_of_step(step - 1), "train/tokens": step * self.tokens_per_step}
        row["throughput/tokens_per_sec"] = self._throughput(step)
        self.latest |= row
        log_everywhere(trainer, row, step)
        self._raise_alarms(row, idle, step)

    def _throughput(self, step: int) -> float:
        now = time.perf_counter()
        seconds = now - self._row_time - self._paused_seconds
        self.training_seconds += seconds
        self.training_steps += step - self._row_step
        rate = (step - self._row_step) * self.tokens_per_step / seconds
        self._row_step, self._row_time, self._paused_seconds = step, now, 0.0
        return rate

    def _raise_alarms(self, row: dict[str, float], idle_steps: float, step: int) -> None:
        for name in ("train/loss", "train/grad_norm"):
            raise_if_not_finite(name, row[name], step)
        limit = self.settings.abort_idle_steps
        if limit is not None and idle_steps >= limit:
            raise RunFailed(
                f"routing collapsed: at step {step} an expert had no token for {idle_steps:.0f} steps "
                f"(trainer.abort_idle_steps={limit}); strengthen the control (chrono=…, chrono.rate, chrono.gamma)"
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused_seconds += time.perf_counter() - self._validation_began
        if trainer.sanity_checking:
            return
        row = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        loss = row["val/loss"]
        row["val/perplexity"] = math.exp(min(loss, 700.0))
        row["train/tokens"] = trainer.global_step * self.tokens_per_step
        self.latest |= row
        log_everywhere(trainer, row, trainer.global_step)
        raise_if_not_finite("val/loss", loss, trainer.global_step)


def raise_if_not_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise RunFailed(
            f"{name} is {value} at step {step}: lower optim.lr, or go on from the last good state with ckpt_path=last"
        )


def log_everywhere(trainer: L.Trainer, row: dict[str, float], step: int) -> None:
    logger: Logger
    for logger in trainer.loggers:
        logger.log_metrics(row, step)
