"""The progress bar: optimizer steps, with loss, coherence, MaxVio and tokens per second."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
from tqdm import tqdm

from chronomoe.training.telemetry import Telemetry

SHOWN = {
    "loss": ("train/loss", "{:.3f}"),
    "val": ("val/loss", "{:.3f}"),
    "coherence": ("chrono/coherence", "{:.4f}"),
    "MaxVio": ("router/max_vio", "{:.2f}"),
    "tok/s": ("throughput/tokens_per_sec", "{:,.0f}"),
}


class ProgressBar(L.Callback):
    """Shows what Telemetry last read, so that it costs no transfer of its own; must come after it in the list."""

    def __init__(self, telemetry: Telemetry, max_steps: int) -> None:
        self.telemetry, self.max_steps = telemetry, max_steps
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.bar = tqdm(
                total=self.max_steps, initial=trainer.global_step, desc="training", unit="step",
                file=sys.stderr, dynamic_ncols=True,
            )  # fmt: skip

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.bar is None or trainer.global_step == self.bar.n:
            return
        latest = self.telemetry.latest
        shown = {name: form.format(latest[key]) for name, (key, form) in SHOWN.items() if key in latest}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()  # Lightning calls no teardown hook after an exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
