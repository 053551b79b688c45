"""A chunk of generated tokens: what it shows, what presses, and what was decided.

    C_k = mean over its tokens of 1 - Hn ;  dC_k = C_k - C_(k-1), of the first chunk against the prompt's mean
Statistics are of generated tokens only. Signals are aggregated as their mean over the chunk or taken from its last
token; confidences are a clock's state and always the last.

Axes: S tokens of the chunk, L MoE layers, E experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from chronomoe.session.constraints import Threshold, penalty
from chronomoe.session.documented import documented_inputs
from chronomoe.session.pressures import Inputs
from chronomoe.session.reading import Floats
from chronomoe.session.routing_signals import usage_and_information
from chronomoe.session.settings import SessionSettings
from chronomoe.session.text_signals import WINDOW, distinct_4, is_degenerate
from chronomoe.session.token_record import SIGNALS, Columns

DERIVED = ("C", "v")


@dataclass(frozen=True)
class Chunk:
    index: int
    start: int
    """Position of its first token."""
    ids: list[int]
    mode: str
    forced: bool
    """Its tokens were given, not generated."""
    inserted: int
    """Tokens inserted since the chunk before."""
    work: float
    """Their surprisal, nats."""
    inputs: dict[str, float | None]
    """What the pressures were fed: pressures.py, `Inputs`."""
    P_fast: float
    P_mid: float
    P_slow: float
    w_fast: float
    w_mid: float
    w_slow: float
    P_net: float
    rho_before: float
    """Residual intent that the weights are of."""
    rho: float
    """After the chunk."""
    pause_reason: str | None
    """None: generation goes on."""
    mean: dict[str, float]
    """Signal -> mean over the chunk."""
    last: dict[str, float]
    """Signal -> value at its last token."""
    dC: float
    H_use: float
    """Entropy of the mean distribution over experts, nats, mean over layers."""
    information: float
    """I = H_use - mean H, nats, mean over layers."""
    H_L: list[float]
    """Mean entropy of every layer, nats."""
    distinct4: float
    degenerate: bool

    @property
    def should_pause(self) -> bool:
        return self.pause_reason is not None

    def row(self) -> dict[str, Any]:
        """Flat: `<signal>_mean` and `<signal>_last` beside the rest, for a table."""
        row = asdict(self) | {"should_pause": self.should_pause}
        for part in ("mean", "last"):
            row |= {f"{name}_{part}": value for name, value in row.pop(part).items()}
        return row | {f"input_{name}": value for name, value in row.pop("inputs").items()}


def with_derived(columns: Columns, thresholds: dict[str, Threshold]) -> Columns:
    """The columns with C, and with v where there are constraints."""
    derived = columns | {"C": 1.0 - columns["Hn"]}
    return derived | ({"v": penalty(columns, thresholds)} if thresholds else {})


def statistics(columns: Columns) -> tuple[dict[str, float], dict[str, float]]:
    """(mean, last) of every signal of a chunk."""
    names = [name for name in (*SIGNALS, *DERIVED) if name in columns]
    return {n: float(columns[n].mean()) for n in names}, {n: float(columns[n][-1]) for n in names}


def inputs_of(columns: Columns, C_before: float, C_token_before: float, settings: SessionSettings) -> Inputs:
    """What the pressures of a chunk are fed, from its columns with what is derived.

    C_before: mean coherence of the chunk before, or of the prompt. C_token_before: of the token before the last one.
    """
    mean, last = statistics(columns)
    if settings.signals == "documented":
        return documented_inputs(last["usage_Hn"], last["usage_m_r"], last["m_selected"], last["C"] - C_token_before)
    by_mean = settings.aggregation == "chunk_mean"
    value = mean if by_mean else last
    return Inputs(
        Hn=value["Hn"],
        m_r=value["m_r"],
        dR=mean["C"] - C_before if by_mean else last["C"] - C_token_before,
        m=value["m"],
        q=value["q"] if settings.q_source == "basin" else value["J"],
        d_meso=value["d_meso"],
        d_macro=value["d_macro"],
        c_s=last["c_s"],
        v=value.get("v"),
    )


def describe(columns: Columns, probabilities_SLE: Floats, generated: list[int]) -> dict[str, Any]:
    """What a chunk shows, by the names of `Chunk`. `generated`: all tokens generated up to its end."""
    usage_L, information_L = usage_and_information(probabilities_SLE)
    mean, last = statistics(columns)
    return {
        "start": int(columns["t"][0]),
        "ids": columns["token"].tolist(),
        "mean": mean,
        "last": last,
        "H_use": float(usage_L.mean()),
        "information": float(information_L.mean()),
        "H_L": columns["H_L"].mean(axis=0).tolist(),
        "distinct4": distinct_4(generated[-WINDOW:]),
        "degenerate": is_degenerate(generated),
    }


class Aggregate(NamedTuple):
    """Of the chunks since the session began or was reset."""

    chunks: int
    tokens: int
    mean_chunk_tokens: float
    mean_P_net: float
    pauses: dict[str, int]
    """Reason -> how often."""


def aggregate(chunks: Sequence[Chunk]) -> Aggregate:
    """Of at least one chunk."""
    tokens = sum(len(chunk.ids) for chunk in chunks)
    return Aggregate(
        chunks=len(chunks),
        tokens=tokens,
        mean_chunk_tokens=tokens / len(chunks),
        mean_P_net=sum(chunk.P_net for chunk in chunks) / len(chunks),
        pauses=dict(Counter(chunk.pause_reason for chunk in chunks if chunk.pause_reason is not None)),
    )
