"""The series that are followed over chunks, and how a recording gives them.

| quantity | what |
|---|---|
| P_mid | continuation pressure, whose half-life is asked for |
| P_net | the weighted sum that decides pauses |
| P_slow | pressure of the slow clock |
| Hn | normalised entropy of the clean router distribution |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from chronomoe.decay.series import Series
from chronomoe.halflife.recording import Recording
from chronomoe.session.chunk import Chunk

PRIMARY = "P_mid"
QUANTITIES: dict[str, Callable[[Chunk], Any]] = {
    "P_mid": lambda chunk: chunk.P_mid,
    "P_net": lambda chunk: chunk.P_net,
    "P_slow": lambda chunk: chunk.P_slow,
    "Hn": lambda chunk: chunk.inputs["Hn"],
}


def series_of(recordings: Sequence[Recording], quantity: str) -> list[Series]:
    """One a recording that has a chunk."""
    value = QUANTITIES[quantity]
    return [
        Series(
            value_K=np.array([value(chunk) for chunk in recording.telemetry.chunks], dtype=np.float64),
            prompt=recording.prompt,
            seed=recording.seed,
            stop=recording.stop,  # type: ignore[arg-type]
            degenerate_K=np.array([chunk.degenerate for chunk in recording.telemetry.chunks]),
        )
        for recording in recordings
        if recording.telemetry.chunks
    ]
