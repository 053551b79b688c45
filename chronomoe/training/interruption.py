"""Stopping when asked: Ctrl-C or SIGTERM ends the run after the current optimizer step, with its state saved."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from chronomoe.settings import Stopped


class StopWhenAsked(L.Callback):
    """A first signal asks for an orderly stop; a second one is obeyed at once. Raises Stopped when saved."""

    def __init__(self, last_checkpoint: Path) -> None:
        self.last_checkpoint = last_checkpoint
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}
        self._steps_done = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps_done = trainer.global_step

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise Stopped
        self.asked = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._steps_done:
            return  # only whole optimizer steps can be resumed exactly
        self._steps_done = trainer.global_step
        asked = self.asked
        if trainer.world_size > 1:  # the signal may have reached the ranks at different steps
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
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
