"""What a checkpoint must be to be gone on from: readable, of this model, this controller and this order of the data.

Lightning is not imported here, because these checks come before a run and a wrong file should be refused at once.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from chronomoe.chrono.controller import Chronovisor
from chronomoe.settings import InputError

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
            controller.load_state_dict(checkpoint["callbacks"]["ChronovisorCallback"]["controller"])
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
