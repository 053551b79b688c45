"""Checkpoints that are whole or not there: written beside their place, then moved into it.

`last.ckpt` is refreshed every so many steps and at the end, `best.ckpt` at the lowest validation loss, `step_N.ckpt` on
request. They hold plain containers and tensors and are read with `weights_only=True`: a file that is no checkpoint is
refused, never executed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from chronomoe.settings import RunFailed
from chronomoe.training.resuming import read_checkpoint
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import StepEnd

WRITER = ("PytorchStreamWriter", "inline_container")
"""What stands in torch's errors about a file that could not be written."""


class CheckpointNotSaved(RunFailed):
    """The disk refused a checkpoint; the previous one is untouched."""


class AtomicCheckpointIO(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".tmp")
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except BaseException as error:
            unfinished.unlink(missing_ok=True)
            if not isinstance(error, OSError) and not any(name in str(error) for name in WRITER):
                raise  # no fault of the disk, which torch reports in the name of its writer
            reason = error.strerror if isinstance(error, OSError) else "the write failed, the disk may be full"
            kept = "; the previous one is untouched" if target.exists() else ""
            raise CheckpointNotSaved(f"could not save {target}: {reason}{kept}") from error

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
