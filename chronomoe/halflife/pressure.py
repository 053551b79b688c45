"""What P_mid of every chunk was made of: its inputs as arrays, its terms, and itself as a function of them.

    P_mid = clip(0.4 tanh(1 - m) + 0.3 tanh q + 0.2 tanh(1/(1 + d_meso)) + 0.1 tanh dR, -1, 1)
The formula stands in session/pressures.py; here it is taken apart, and tested to be the same.

Axes: N chunks, of whatever texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from chronomoe.decay.series import Series
from chronomoe.halflife.recording import Recording
from chronomoe.session.chunk import Chunk
from chronomoe.session.pressures import mid

INPUTS = ("m", "q", "d_meso", "dR")
Values = Mapping[str, NDArray[np.float64]]
pressures = np.vectorize(mid, otypes=[np.float64])


def pressure(inputs: Values) -> NDArray[np.float64]:
    return np.asarray(pressures(*(inputs[name] for name in INPUTS)))


def terms(inputs: Values) -> dict[str, NDArray[np.float64]]:
    """Which sum up to P_mid, but for its clipping."""
    return {
        "m": 0.4 * np.tanh(1 - inputs["m"]),
        "q": 0.3 * np.tanh(inputs["q"]),
        "d_meso": 0.2 * np.tanh(1 / (1 + inputs["d_meso"])),
        "dR": 0.1 * np.tanh(inputs["dR"]),
    }


def inputs_of(recordings: Sequence[Recording]) -> dict[str, NDArray[np.float64]]:
    """Of every chunk before the first degenerate one, [N]."""
    chunks = [chunk for recording in recordings for chunk in sound(recording)]
    return {name: np.array([chunk.inputs[name] for chunk in chunks], dtype=np.float64) for name in INPUTS}


def within_texts(values: Values, recordings: Sequence[Recording]) -> dict[str, NDArray[np.float64]]:
    """Every text's own mean taken out, [N]: what is left is what moves while a text goes on."""
    text_N = np.repeat(np.arange(len(recordings)), [len(sound(recording)) for recording in recordings])
    counts = np.bincount(text_N, minlength=len(recordings))
    means = {name: np.bincount(text_N, of_N, len(recordings)) / np.maximum(counts, 1) for name, of_N in values.items()}
    return {name: of_N - means[name][text_N] for name, of_N in values.items()}


def chunk_numbers(recordings: Sequence[Recording]) -> NDArray[np.int64]:
    return np.array([chunk.index for recording in recordings for chunk in sound(recording)], dtype=np.int64)


def sound(recording: Recording) -> list[Chunk]:
    """The chunks before the first degenerate one."""
    chunks = recording.telemetry.chunks
    onset = next((number for number, chunk in enumerate(chunks) if chunk.degenerate), len(chunks))
    return chunks[:onset]


def constant_arm(arm: Sequence[Series], recordings: Sequence[Recording]) -> list[Series]:
    """The pressure of inputs that stand at the mean of their text: it must be said to be stable, with variance 0."""
    by_text = {(recording.prompt, recording.seed): sound(recording) for recording in recordings}
    found = []
    for series in arm:
        chunks = by_text[series.prompt, series.seed]
        if chunks:
            inputs = {name: np.array([chunk.inputs[name] for chunk in chunks], dtype=np.float64) for name in INPUTS}
            means = {name: np.full_like(of, of.mean()) for name, of in inputs.items()}
            found.append(replace(series, value_K=pressure(means), degenerate_K=None))
    return found
