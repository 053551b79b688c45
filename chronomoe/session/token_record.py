"""What is recorded of every token after the first, and records as columns.

| column | definition |
|---|---|
| kind, chunk, t, token | 0 prompt, 1 generated or forced, 2 inserted; chunk or NO_CHUNK; position; id |
| surprisal, p1, p2, m, m_nats, m_selected | of the next-token distribution before the token: text_signals.py |
| Hn, Hn_effective | entropy of the clean, and of the steered, router distribution over ln E, mean over layers |
| m_r, m_r_logit, m_r_boundary | router margins, mean over layers: routing_signals.py |
| d_meso, d_macro, c_f, c_m, c_s | clock distances and confidences: clock_heads.py |
| x_fast, x_mid, x_slow | distance of the token from each clock's mean before it |
| code, q, J | code of the codebook, transition probability, routing persistence |
| repetition, surprise, saturation | g of the constraints: constraints.py |
| usage_Hn, usage_m_r | the first prototype's entropy and margin: documented.py |
| H_L, m_r_L, expert_ids_LK | per layer: entropy in nats, margin, visited experts |

NaN: not defined yet. q and J need a token before, distances LEAST_UPDATES updates of the clocks. Position 0 has no
record and enters nothing but the prototype's usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.session.reading import Floats, Integers

PROMPT, GENERATED, INSERTED = 0, 1, 2
NO_CHUNK = -1
"""Chunk of the prompt's tokens, and of a last piece shorter than half a chunk."""


class TokenRecord(NamedTuple):
    kind: int
    chunk: int
    t: int
    token: int
    surprisal: float
    p1: float
    p2: float
    m: float
    m_nats: float
    m_selected: float
    Hn: float
    Hn_effective: float
    m_r: float
    m_r_logit: float
    m_r_boundary: float
    d_meso: float
    d_macro: float
    c_f: float
    c_m: float
    c_s: float
    x_fast: float
    x_mid: float
    x_slow: float
    code: int
    q: float
    J: float
    repetition: float
    surprise: float
    saturation: float
    usage_Hn: float
    usage_m_r: float
    H_L: Floats
    m_r_L: Floats
    expert_ids_LK: Integers


PER_LAYER = ("H_L", "m_r_L", "expert_ids_LK")
COUNTED = ("kind", "chunk", "t", "token", "code")
SIGNALS = tuple(name for name in TokenRecord._fields if name not in PER_LAYER + COUNTED)
"""Columns with a chunk mean and a chunk's last value."""

Columns = dict[str, NDArray[Any]]


def columns_of(records: Sequence[TokenRecord]) -> Columns:
    """Column -> array over tokens, of at least one token: int64 for COUNTED and ids, fp64 for the rest."""
    return {
        name: np.array(values) for name, values in zip(TokenRecord._fields, zip(*records, strict=True), strict=True)
    }


def records_of(columns: Columns) -> list[TokenRecord]:
    """The records that `columns_of` was given."""
    values = [list(columns[n]) if n in PER_LAYER else columns[n].tolist() for n in TokenRecord._fields]
    return [TokenRecord(*row) for row in zip(*values, strict=True)]
