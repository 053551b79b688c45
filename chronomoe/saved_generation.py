"""A generation that is put down and taken up again, token by token the one that was never interrupted.

`python -m chronomoe.generate … save=<file>` writes, and `resume=<file>` reads, plain containers and tensors:

| key | holds |
|---|---|
| weights | fingerprint of the model: a state means nothing to another |
| state | what the model remembers (model/state.py) |
| unread | ids that were drawn or given and that the model has not read: at least the last one drawn |
| unwritten | ids of a character that is not complete yet, so that nobody has seen it |
| generator | the random numbers to come |
| temperature, top_p | how ids are drawn |
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from chronomoe.model.lm import LanguageModel
from chronomoe.model.state import StreamState
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors
from chronomoe.training.resuming import BROKEN

SAMPLED = 256
"""Numbers of every tensor that a fingerprint is of."""

FIELD = ("expert_bias_LE", "log_temperature_LE")


class HasWeights(Protocol):
    def state_dict(self) -> dict[str, Any]: ...


@dataclass
class Session:
    state: StreamState
    unread: list[int]
    unwritten: list[int]
    generator: torch.Generator
    temperature: float
    top_p: float

    def follow(self, new_tokens: Iterable[Tensor]) -> Iterator[int]:
        """Pass ids on as they are drawn; what was unread before has been read by then."""
        for token_B in new_tokens:
            self.unread = [int(token_B.item())]
            yield self.unread[0]

    def save(self, path: Path, model: LanguageModel) -> None:
        """Whole, or not at all. Raises RunFailed if the disk refuses."""
        saved = {
            "weights": fingerprint(model),
            "state": self.state.to_dict(),
            "unread": self.unread,
            "unwritten": self.unwritten,
            "generator": self.generator.get_state(),
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        save_tensors(saved, path)


def fingerprint(model: HasWeights, *, with_field: bool = True) -> str:
    """Of a part of every weight and of the field: enough to tell models apart, and fast for large ones. Without the
    field, of what it acts on."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not with_field and name.endswith(FIELD):
            continue
        hasher.update(f"{name} {tuple(tensor.shape)}".encode())
        hasher.update(tensor.detach().flatten()[:SAMPLED].cpu().double().numpy().tobytes())
    return hasher.hexdigest()


def new_session(model: LanguageModel, capacity: int, *, seed: int, temperature: float, top_p: float) -> Session:
    """Nothing read yet; with room for `capacity` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return Session(model.new_state(1, capacity), [], [], generator, temperature, top_p)


def check_target(path: Path) -> None:
    """Before anything is generated: raise InputError where no session could be saved."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"save={path}: give a file in a folder that exists")


def load_session(path: Path, model: LanguageModel) -> Session:
    """Raises InputError for a file that is missing, broken, no session, or of another model."""
    if not path.is_file():
        raise InputError(f"resume={path}: there is no such file")
    try:
        with warnings.catch_warnings(action="ignore"):
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except BROKEN:
        raise InputError(f"resume={path} is truncated, or no session; it was not executed") from None
    if not isinstance(saved, dict) or saved.keys() != {"weights", "state", *Session.__dataclass_fields__}:
        raise InputError(f"resume={path} is no session: save one with save=<file>")
    if saved.pop("weights") != fingerprint(model):
        raise InputError(f"resume={path} was saved with other weights: use the run and the checkpoint it is of")
    state = model.new_state(1)
    try:
        state.load_dict(saved.pop("state"))
        return Session(state, generator=restored(saved.pop("generator")), **checked(saved, model.settings.vocab_size))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"resume={path} is broken: {str(error).splitlines()[0]}") from None


def restored(saved: Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(saved)
    return generator


def checked(saved: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The plain values of a session. Raises ValueError for those that no session has."""
    for name in ("unread", "unwritten"):
        ids = saved[name]
        if not isinstance(ids, list) or not all(isinstance(id_, int) and 0 <= id_ < vocab_size for id_ in ids):
            raise ValueError(f"{name} holds no token ids")
    if not saved["unread"]:
        raise ValueError("unread is empty")
    if not 0 <= saved["temperature"] < float("inf") or not 0 <= saved["top_p"] <= 1:
        raise ValueError(f"temperature={saved['temperature']} or top_p={saved['top_p']} is out of range")
    return saved
