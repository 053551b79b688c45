"""What a text of the usual kind looks like to a model: the frame that every session of the model is measured in.

One pass over a calibration text, block by block, fixes the means of hidden state and routing signature, the codebook,
the thresholds of the constraints, and mean and standard deviation of every signal. A signal that stands still on the
whole text is constant by construction: a session refuses it, by name.

The text must be disjoint from the prompts; its hash is kept. Memory: 4 (D + 4 L E) bytes a token or so. Axes: D model
dim, U = L * E, B codes, X = D + U.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from chronomoe.saved_generation import fingerprint
from chronomoe.session.clock_heads import LEAST_UPDATES, Doubles, observation, signature
from chronomoe.session.codebook import spherical_kmeans
from chronomoe.session.constraints import CONSTRAINTS, Threshold, threshold_of
from chronomoe.session.meter import Frame, Look, Meter, look
from chronomoe.session.reading import Readable, check_readable, read
from chronomoe.session.token_record import NO_CHUNK, PROMPT, SIGNALS, columns_of
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors
from chronomoe.training.resuming import BROKEN

LEAST_TOKENS = 50_000
STILL = 1e-9
"""A standard deviation that is rounding, not movement."""


@dataclass(frozen=True)
class Calibration:
    weights: str
    """Fingerprint of the model's weights; its field may differ, so that arms with and without control share a frame."""
    text: str
    """SHA-256 of the calibration ids."""
    num_tokens: int
    mean_hidden_D: Doubles
    mean_signature_U: Doubles
    centre_BX: Doubles
    thresholds: dict[str, list[float]]
    """Constraint -> theta, standard deviation."""
    signals: dict[str, list[float]]
    """Signal -> mean, standard deviation over the tokens of the calibration text."""

    @property
    def frame(self) -> Frame:
        return Frame(self.mean_hidden_D, self.mean_signature_U, self.centre_BX)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, to say which calibration a number was measured in."""
        hasher = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            hasher.update(field.name.encode())
            hasher.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return hasher.hexdigest()

    def check_model(self, model: Readable) -> None:
        """Raises InputError for a model it was not made with."""
        if self.weights != weights_of(model):
            raise InputError(
                "the calibration was made with other weights: calibrate this model, or use the one it is of"
            )

    def thresholds_of(self, constraints: Sequence[str]) -> dict[str, Threshold]:
        """Raises InputError for a constraint that never moved on the calibration text."""
        for name in constraints:
            self.check_moves(name, self.thresholds[name][1])
        return {name: Threshold(*self.thresholds[name]) for name in constraints}

    def check_signals(self, names: Sequence[str]) -> None:
        """Raises InputError for a signal that is constant by construction."""
        for name in names:
            self.check_moves(name, self.signals[name][1])

    def check_moves(self, name: str, sd: float) -> None:
        if not sd > STILL:
            raise InputError(
                f"signal {name} is the same at every token of the calibration text: it is constant by construction, "
                "or the text is; use a model whose routing it can see, or a longer text"
            )

    def save(self, path: Path) -> None:
        """Whole, or not at all. Raises RunFailed if the disk refuses."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        save_tensors({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in content.items()}, path)


def text_hash(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).hexdigest()


def weights_of(model: Readable) -> str:
    return fingerprint(model, with_field=False)


def load_calibration(path: Path) -> Calibration:
    """Raises InputError for a file that is missing, broken, or no calibration."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; make a calibration first")
    try:
        with warnings.catch_warnings(action="ignore"):
            saved: Any = torch.load(path, map_location="cpu", weights_only=True)
        content: dict[str, Any] = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in saved.items()}
        return Calibration(**content)
    except BROKEN:
        raise InputError(f"{path} is truncated, or no calibration; it was not executed") from None


def calibrate(
    model: Readable,
    ids: Sequence[int],
    *,
    num_codes: int = 8,
    block_tokens: int = 512,
    seed: int = 0,
    least_tokens: int = LEAST_TOKENS,
) -> Calibration:
    """Measure a text. Every block is read from nothing, as a prompt is.

    Raises InputError for a model that cannot be measured, a text shorter than `least_tokens`, and one with fewer
    different tokens than codes.
    """
    check_readable(model)
    block_tokens = int(min(block_tokens, model.settings.longest_text))
    ids = [int(token) for token in ids]
    if len(ids) < max(least_tokens, 2 * LEAST_UPDATES) or block_tokens < 2 * LEAST_UPDATES:
        raise InputError(
            f"the calibration text has {len(ids)} tokens in blocks of {block_tokens}: give at least {least_tokens} in "
            f"blocks of at least {2 * LEAST_UPDATES}"
        )
    blocks = [ids[start : start + block_tokens] for start in range(0, len(ids), block_tokens)]
    if len(blocks[-1]) < 2 * LEAST_UPDATES:  # too short to reach the clocks
        blocks.pop()
    looks = [look_at_block(model, block) for block in tqdm(blocks, "calibrating: reading", delay=2, unit="block")]
    hidden = [seen.hidden_SD[1:] for seen in looks]
    signatures = [signature(seen.probabilities_SLE[1:]).astype(np.float32) for seen in looks]
    mean_hidden_D, mean_signature_U = (
        np.sum([part.sum(axis=0, dtype=np.float64) for part in parts], axis=0) / sum(map(len, parts))
        for parts in (hidden, signatures)
    )
    x_NX = np.concatenate(
        [
            observation(h, u, mean_hidden_D, mean_signature_U).astype(np.float32)
            for h, u in zip(hidden, signatures, strict=True)
        ]
    )
    frame = Frame(mean_hidden_D, mean_signature_U, spherical_kmeans(x_NX, num_codes, seed))
    columns = measure_blocks(looks, frame, model.settings.num_experts)
    return Calibration(
        weights=weights_of(model),
        text=text_hash(ids),
        num_tokens=sum(map(len, blocks)),
        mean_hidden_D=frame.mean_hidden_D,
        mean_signature_U=frame.mean_signature_U,
        centre_BX=frame.centre_BX,
        thresholds={name: list(threshold_of(columns[name])) for name in CONSTRAINTS},
        signals={name: [float(columns[name].mean()), float(columns[name].std())] for name in SIGNALS},
    )


def look_at_block(model: Readable, block: list[int]) -> Look:
    reading = read(model, block, model.new_state(1, len(block)))
    return look(reading, reading.logits_SV[:-1], block)


def measure_blocks(looks: list[Look], frame: Frame, num_experts: int) -> dict[str, Doubles]:
    """Signal -> its values at all tokens where the clocks are ready."""
    parts = []
    for seen in tqdm(looks, "calibrating: measuring", delay=2, unit="block"):
        columns = columns_of(Meter(frame, num_experts).follow(seen, PROMPT, NO_CHUNK))
        ready = np.isfinite(columns["d_macro"])
        parts.append({name: columns[name][ready] for name in SIGNALS})
    return {name: np.concatenate([part[name] for part in parts]) for name in SIGNALS}
