"""What a session recorded, in one file, and its pressures computed anew from it.

| part | holds |
|---|---|
| about | settings, model sizes, hash of the calibration, absent signals, why the session ended: plain values |
| tokens | a column a signal: token_record.py; with C, and v where there are constraints |
| chunks | chunk.py, `Chunk` |

A chunk's tokens are those of kind 1 that carry its index; inserted tokens carry the index of the chunk to come.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chronomoe.session.chunk import Chunk, inputs_of
from chronomoe.session.pressures import Pressures, press
from chronomoe.session.settings import SessionSettings
from chronomoe.session.token_record import GENERATED, PROMPT, Columns
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors
from chronomoe.training.resuming import BROKEN


@dataclass(frozen=True)
class Telemetry:
    about: dict[str, Any]
    tokens: Columns
    chunks: list[Chunk]

    def write(self, path: Path) -> None:
        """Whole, or not at all. Raises RunFailed if the disk refuses."""
        tokens = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in self.tokens.items()}
        save_tensors({"about": self.about, "tokens": tokens, "chunks": [asdict(c) for c in self.chunks]}, path)


def read_telemetry(path: Path) -> Telemetry:
    """Raises InputError for a file that is missing, broken, or no telemetry."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the telemetry of a session")
    try:
        with warnings.catch_warnings(action="ignore"):
            saved: Any = torch.load(path, map_location="cpu", weights_only=True)
        tokens = {name: column.numpy() for name, column in saved["tokens"].items()}
        return Telemetry(saved["about"], tokens, [Chunk(**chunk) for chunk in saved["chunks"]])
    except BROKEN:
        raise InputError(f"{path} is truncated, or no telemetry of a session; it was not executed") from None


def replay(telemetry: Telemetry) -> list[Pressures]:
    """The pressures of every chunk, computed from the token columns alone and the residual intent before it."""
    tokens, about = telemetry.tokens, telemetry.about
    settings = SessionSettings(**about["settings"])
    C_before = float(tokens["C"][tokens["kind"] == PROMPT].mean())
    replayed = []
    for chunk in telemetry.chunks:
        own = (tokens["kind"] == GENERATED) & (tokens["chunk"] == chunk.index)
        columns = {name: column[own] for name, column in tokens.items()}
        token_before = float(tokens["C"][tokens["t"] == columns["t"][-1] - 1][0])
        replayed.append(
            press(
                inputs_of(columns, C_before, token_before, settings),
                rho=chunk.rho_before,
                entropy_scale=settings.scale,
                num_experts=about["num_experts"],
            )
        )
        C_before = float(columns["C"].mean())
    return replayed
