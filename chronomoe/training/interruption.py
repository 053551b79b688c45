"""Stopping when asked: Ctrl-C or SIGTERM ends the run after the next logged optimizer step, with its state saved."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from chronomoe.settings import Stopped
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import StepEnd


class StopWhenAsked(StepEnd):
    """A first signal asks for an orderly stop; a second one is obeyed at once. Raises Stopped when saved."""

    def __init__(self, settings: TrainerSettings, last_checkpoint: Path) -> None:
        super().__init__(settings)
        self.last_checkpoint = last_checkpoint
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Stopped
        self.asked = True

    def at_step_end(self, trainer: L.Trainer, step: int) -> None:
        if step % (self.settings.log_every_steps or 1):
            return  # a step nobody looked at is not saved, and asking the other ranks costs a wait for the device
        asked = self.asked
        if trainer.world_size > 1:  # the signal may have reached the ranks at different steps
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and step < self.settings.max_steps:  # a whole run is done, not stopped
            trainer.save_checkpoint(self.last_checkpoint)
            raise Stopped

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()  # Lightning calls no teardown hook after an exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
