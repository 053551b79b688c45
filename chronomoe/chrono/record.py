"""The routing record of a run: load, field and signals over time, kept small and written as `routing.npz`.

At most `CAPACITY` steps are kept; when they are full every second one is dropped and the stride doubles. Which steps
are kept depends on the step numbers alone, so a resumed run's record equals an uninterrupted one's.

Axes: N recorded steps, L MoE layers, E experts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chronomoe.chrono.laws.law import Field, Signals

CAPACITY = 1024
EXPERTWISE = ("pressure_LE", "lens_LE")


class RoutingRecord:
    def __init__(self) -> None:
        self.stride = 1
        self.steps: list[int] = []
        self.rows: list[dict[str, Tensor]] = []

    def append(
        self, step: int, tokens_per_expert_LE: Tensor, field: Field, signals: Signals, phi_LE: Tensor | None = None
    ) -> None:
        """Keep step's tensors where they are (nothing is copied to the host until `save`). `phi_LE` is kept where it is
        measured, from the first step on."""
        if step % self.stride:
            return
        like_LE = field.bias_LE
        row = {
            "tokens_per_expert": tokens_per_expert_LE,
            "bias": field.bias_LE,
            "log_temperature": field.log_temperature_LE,
            "coherence": signals.get("coherence_L", like_LE.new_full((len(like_LE),), float("nan"))),
        }
        row |= {name.removesuffix("_LE"): signals.get(name, torch.zeros_like(like_LE)) for name in EXPERTWISE}
        if phi_LE is not None:
            row["phi"] = phi_LE
        self.steps.append(step)
        self.rows.append(row)
        if len(self.steps) > CAPACITY:
            self.stride *= 2
            kept = [i for i, kept_step in enumerate(self.steps) if kept_step % self.stride == 0]
            self.steps, self.rows = [self.steps[i] for i in kept], [self.rows[i] for i in kept]

    def save(self, path: Path) -> None:
        """Write all rows to `path` (.npz), replacing an earlier file at once or not at all."""
        if not self.rows:
            return
        arrays: dict[str, Any] = {
            name: torch.stack([row[name] for row in self.rows]).cpu().numpy() for name in self.rows[0]
        }
        unfinished = path.with_suffix(".tmp.npz")
        arrays |= {"step": np.array(self.steps), "stride": np.array(self.stride)}
        np.savez_compressed(unfinished, **arrays)
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: Path, last_step: int, device: torch.device | None = None) -> RoutingRecord:
        """The record in `path` up to `last_step`, to go on from, on `device`; empty if there is no file."""
        record = cls()
        if not path.exists():
            return record
        with np.load(path) as arrays:
            record.stride = int(arrays["stride"])
            names = [name for name in arrays.files if name not in ("step", "stride")]
            columns = {name: torch.from_numpy(arrays[name]).to(device) for name in names}
            for index, step in enumerate(arrays["step"].tolist()):
                if step <= last_step:
                    record.steps.append(step)
                    record.rows.append({name: column[index] for name, column in columns.items()})
        return record if record.rows else cls()  # a run that starts over must not inherit an old run's stride
