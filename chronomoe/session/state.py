"""All that a session remembers, in one place: copied to come back to, written to disk to go on from.

A state restored, in this process or another, goes on bit for bit as if nothing had happened: text, model state, clocks,
codebook counts, residual intent, history, the random numbers to come, and the field of the model's controller.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chronomoe.saved_generation import restored
from chronomoe.session.calibration import Calibration
from chronomoe.session.chunk import Chunk
from chronomoe.session.meter import Meter
from chronomoe.session.reading import Readable
from chronomoe.session.token_record import TokenRecord, columns_of, records_of
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors
from chronomoe.training.resuming import BROKEN

PLAIN = ("ids", "rho", "mode", "paused", "ended", "history_from", "C_before")
"""Fields of plain values."""


@dataclass
class SessionState:
    ids: list[int]
    """Every token of the text, position 0 included."""
    stream: Any
    """What the model remembers of them."""
    next_logits_V: Tensor
    """Of the token to come, fp32: no forward is made twice."""
    meter: Meter
    generator: torch.Generator
    field: tuple[Tensor, Tensor]
    """Bias and log-temperature of the model's controller."""
    rho: float
    mode: str
    paused: bool
    ended: str | None
    """Why no chunk follows; None: one may."""
    history_from: int
    """First chunk of the history, which a reset empties."""
    C_before: float
    """Mean coherence of the last chunk, or of the prompt."""
    tokens: list[TokenRecord]
    chunks: list[Chunk]

    def clone(self) -> SessionState:
        """A copy that shares nothing that changes."""
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return replace(
            self,
            ids=list(self.ids),
            stream=self.stream.clone(),
            next_logits_V=self.next_logits_V.clone(),
            meter=self.meter.clone(),
            generator=generator,
            field=(self.field[0].clone(), self.field[1].clone()),
            tokens=list(self.tokens),
            chunks=list(self.chunks),
        )

    def save(self, path: Path, calibration: Calibration, settings: dict[str, Any]) -> None:
        """Whole, or not at all. Raises RunFailed if the disk refuses."""
        content = {
            "calibration": calibration.digest,
            "settings": settings,
            "stream": self.stream.to_dict(),
            "next_logits_V": self.next_logits_V.clone(),
            "meter": converted(self.meter.to_dict(), np.ndarray, torch.from_numpy),
            "generator": self.generator.get_state(),
            "field": [part.detach().cpu().clone() for part in self.field],
            "tokens": converted(columns_of(self.tokens), np.ndarray, torch.from_numpy),
            "chunks": [asdict(chunk) for chunk in self.chunks],
        }
        save_tensors(content | {name: getattr(self, name) for name in PLAIN}, path)


def load_state(path: Path, model: Readable, calibration: Calibration, settings: dict[str, Any]) -> SessionState:
    """Raises InputError for a file that is missing or broken, or of another calibration, other weights or settings."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give what a session saved")
    try:
        with warnings.catch_warnings(action="ignore"):
            saved: Any = torch.load(path, map_location="cpu", weights_only=True)
        if saved["calibration"] != calibration.digest:
            raise InputError(f"{path} was saved under another calibration: load the one it began with")
        other = [name for name in settings if saved["settings"].get(name) != settings[name]]
        if other:
            raise InputError(f"{path} was saved with another {other[0]}: use {other[0]}={saved['settings'][other[0]]}")
        meter = Meter(calibration.frame, model.settings.num_experts)
        meter.load_dict(converted(saved["meter"], Tensor, Tensor.numpy))
        stream = model.new_state(1)
        stream.load_dict(saved["stream"])
        return SessionState(
            stream=stream,
            next_logits_V=saved["next_logits_V"],
            meter=meter,
            generator=restored(saved["generator"]),
            field=(saved["field"][0], saved["field"][1]),
            tokens=records_of(converted(saved["tokens"], Tensor, Tensor.numpy)),
            chunks=[Chunk(**chunk) for chunk in saved["chunks"]],
            **{name: saved[name] for name in PLAIN},
        )
    except InputError:
        raise
    except BROKEN:
        raise InputError(f"{path} is truncated, or no saved session; it was not executed") from None


def converted(content: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Nested dicts and lists with everything of a kind converted."""
    if isinstance(content, kind):
        return convert(content)
    if isinstance(content, dict):
        return {key: converted(value, kind, convert) for key, value in content.items()}
    return [converted(value, kind, convert) for value in content] if isinstance(content, list) else content
