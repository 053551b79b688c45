"""Checkpoints that are whole or not there: written beside their place, then moved into it.

`last.ckpt` is refreshed every so many steps and at the end, `best.ckpt` at the lowest validation loss, `step_N.ckpt` on
request. They hold plain containers and tensors and are read with `weights_only=True`: a file that is no checkpoint is
refused, never executed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from chronomoe.tensor_file import save_tensors
from chronomoe.training.resuming import read_checkpoint
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import StepEnd


class AtomicCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(checkpoint, target)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        target = Path(path)
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


class SaveEvery(StepEnd):
    """Saves the whole run every `steps` optimizer steps; `{step}` in the file's name is replaced by the step."""

    def __init__(self, settings: TrainerSettings, steps: int, path: Path) -> None:
        super().__init__(settings)
        self.steps, self.path = steps, path

    def at_step_end(self, trainer: L.Trainer, step: int) -> None:
        if step % self.steps == 0:
            trainer.save_checkpoint(self.path.with_name(self.path.name.format(step=step)))


def checkpoint_callbacks(directory: Path, trainer: TrainerSettings) -> list[Callback]:
    """The best first: the others save what it knows."""
    best = ModelCheckpoint(
        directory,
        filename="best",
        monitor="val/loss",
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [best, SaveEvery(trainer, trainer.checkpoint_every_steps, directory / "last.ckpt")]
    if trainer.keep_every_steps:
        callbacks.append(SaveEvery(trainer, trainer.keep_every_steps, directory / "step_{step:08d}.ckpt"))
    return callbacks
