"""Checkpoints that are whole or not there: written beside their place, then moved into it.

`last.ckpt` is refreshed every so many steps and at the end, `best.ckpt` at the lowest validation loss, `step_N.ckpt` on
request. They hold plain containers and tensors and are read with `weights_only=True`: a file that is no checkpoint is
refused, never executed.
"""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.settings import InputError, RunFailed
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import StepEnd


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
            if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                raise  # no fault of the disk, which torch reports in the name of its writer
            reason = error.strerror if isinstance(error, OSError) else "the write failed, the disk may be full"
            kept = "; the previous one is untouched" if target.exists() else ""
            raise CheckpointNotSaved(f"could not save {target}: {reason}{kept}") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        target = Path(path)
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError)
"""What torch.load raises on bytes that are no checkpoint."""


def read_checkpoint(path: Path, *, mmap: bool = False, key: str = "ckpt_path") -> dict[str, Any]:
    """Load tensors and plain containers to the CPU. Raises InputError for a missing, broken or foreign file, naming
    the setting `key` that led to it."""
    if not path.is_file():
        raise InputError(f"{key}={path}: there is no such file")
    try:
        with warnings.catch_warnings(action="ignore"):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except BROKEN:
        raise InputError(f"{key}={path} is truncated, or no checkpoint of this project; it was not executed") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise InputError(f"{key}={path} is no training checkpoint: it holds no state_dict")
    if "global_step" not in checkpoint:
        raise InputError(f"{key}={path} is no training checkpoint: it holds no global_step")
    return checkpoint


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


def check_resumable(
    path: Path, model_shapes: dict[str, torch.Size], controller: Chronovisor | None, steps: int
) -> None:
    """Raise InputError unless `path` is a checkpoint of such a model and controller with steps left to train."""
    checkpoint = read_checkpoint(path, mmap=True)
    saved = {name.removeprefix("model."): tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    for name in sorted(saved.keys() | model_shapes.keys()):
        if saved.get(name) != model_shapes.get(name):
            there, here = saved.get(name), model_shapes.get(name)
            raise InputError(
                f"ckpt_path={path} is of another model: {name} is {list(there) if there else 'missing'} there and "
                f"{list(here) if here else 'missing'} here; use the model=… it was trained with"
            )
    if controller is not None:
        try:
            controller.load_state_dict(checkpoint["callbacks"][ChronovisorCallback.__name__]["controller"])
        except KeyError:
            raise InputError(f"ckpt_path={path} holds no controller state: it is of another version") from None
        except InputError as error:
            raise InputError(f"ckpt_path={path}: {error}") from None
    if checkpoint["global_step"] >= steps:
        raise InputError(
            f"ckpt_path={path} is at step {checkpoint['global_step']}: to go on, raise trainer.max_steps={steps} "
            f"and name the folder (hydra.run.dir=…) or the file"
        )


def check_same_order(path: Path, order: dict[str, Any]) -> None:
    """Raise InputError if the checkpoint's run read its text in another order: its position would mean nothing here."""
    saved = read_checkpoint(path, mmap=True).get("LanguageDataModule", {})
    for name, value in order.items():
        if saved.get(name) != value:
            raise InputError(f"ckpt_path={path} was trained with {name}={saved.get(name)}, not {value}: use the same")
