"""The moment an optimizer step is over: after its evaluation, if it has one.

Lightning's own saving every n steps comes before the evaluation; a run resumed from there would miss it, and what it
says about the best checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from chronomoe.training.settings import TrainerSettings


def is_evaluated(step: int, settings: TrainerSettings) -> bool:
    """Whether optimizer step `step` (from 1) is followed by an evaluation: every so many, and the last."""
    return step % settings.eval_every_steps == 0 or step == settings.max_steps


class StepEnd(Checkpoint):
    """Calls `at_step_end` once per optimizer step. A `Checkpoint`, because Lightning keeps those behind all others."""

    def __init__(self, settings: TrainerSettings) -> None:
        self.settings = settings
        self._steps_done = 0

    @abstractmethod
    def at_step_end(self, trainer: L.Trainer, step: int) -> None:
        """Called once per optimizer step, from 1."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps_done = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._steps_done:
            return  # only whole optimizer steps can be resumed exactly
        self._steps_done = step
        if not is_evaluated(step, self.settings):
            self.at_step_end(trainer, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self.at_step_end(trainer, trainer.global_step)
