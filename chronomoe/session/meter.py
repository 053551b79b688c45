"""The meter: measures every token that enters a text, whether it was given, generated or inserted.

First what a token shows by itself, for all tokens of a forward at once (`look`); then what it shows as the next of its
text, one by one (`Meter.follow`): clocks, codes, persistence and the windows of the constraints. All it remembers is
saved and restored with the session.

Axes: S tokens, L MoE layers, E experts, K experts per token, V vocabulary, D model dim, B codes, J clocks.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from chronomoe.session.clock_heads import LEAST_UPDATES, ClockHeads, Distances, Doubles, observation, signature
from chronomoe.session.codebook import Transitions, nearest
from chronomoe.session.constraints import SHORT_WINDOW
from chronomoe.session.documented import UsageAverage
from chronomoe.session.reading import Floats, Integers, Reading
from chronomoe.session.routing_signals import Margins, entropy, margins, persistence
from chronomoe.session.text_signals import NGRAM, WINDOW, TextSignals, distinct_4, read_text
from chronomoe.session.token_record import INSERTED, TokenRecord

UNDEFINED = float("nan")


class Frame(NamedTuple):
    """What a calibration text fixes of the measurement."""

    mean_hidden_D: Doubles
    mean_signature_U: Doubles
    """U = L * E."""
    centre_BX: Doubles
    """The codebook."""


class Look(NamedTuple):
    """What S tokens show by themselves."""

    ids_S: list[int]
    text: TextSignals
    """Of the tokens that have one before them: of all, or of all but the first of a text."""
    hidden_SD: Floats
    probabilities_SLE: Floats
    H_SL: Floats
    effective_H_SL: Floats
    margins: Margins
    expert_ids_SLK: Integers


def look(reading: Reading, before_SV: Tensor, ids_S: list[int]) -> Look:
    """`before_SV`: the logits before each token that has any."""
    return Look(
        ids_S,
        read_text(before_SV, ids_S[len(ids_S) - len(before_SV) :]),
        reading.hidden_SD,
        reading.probabilities_SLE,
        entropy(reading.probabilities_SLE),
        entropy(reading.effective_SLE),
        margins(reading.probabilities_SLE, reading.router_logits_SLE, reading.expert_ids_SLK.shape[-1]),
        reading.expert_ids_SLK,
    )


class Meter:
    def __init__(self, frame: Frame, num_experts: int) -> None:
        self.frame, self.num_experts = frame, num_experts
        self.position = 0
        """Of the next token."""
        self.clocks = ClockHeads(frame.centre_BX.shape[1])
        self.transitions = Transitions(len(frame.centre_BX))
        self.usage = UsageAverage(num_experts)
        self.previous_LK: Integers | None = None
        self.recent_ids: deque[int] = deque(maxlen=WINDOW)
        self.recent_surprisal: deque[float] = deque(maxlen=SHORT_WINDOW)
        self.recent_LE: deque[Floats] = deque(maxlen=SHORT_WINDOW)

    def follow(self, seen: Look, kind: int, chunk: int) -> list[TokenRecord]:
        """Take in the tokens of one forward, in order; returns a record of each but position 0."""
        self.usage.follow(seen.expert_ids_SLK[:, -1])
        usage = (self.usage.Hn, self.usage.margin)
        nats = math.log(self.num_experts)
        first = len(seen.ids_S) - len(seen.text.surprisal)
        text_SC = np.stack(seen.text, axis=1).tolist()
        routing_SC = np.stack([seen.H_SL / nats, seen.effective_H_SL / nats, *seen.margins]).mean(axis=-1).T.tolist()
        x_SX = observation(
            seen.hidden_SD,
            signature(seen.probabilities_SLE),
            self.frame.mean_hidden_D,
            self.frame.mean_signature_U,
        )
        records = []
        for s in range(first, len(seen.ids_S)):
            token, surprisal = seen.ids_S[s], text_SC[s - first][0]
            ids_LK, previous_LK = seen.expert_ids_SLK[s], self.previous_LK
            self.previous_LK = ids_LK
            from_clocks_J = self.clocks.update(x_SX[s])
            ready = self.clocks.updates >= LEAST_UPDATES
            distances = self.clocks.distances() if ready else Distances(UNDEFINED, UNDEFINED)
            code = nearest(x_SX[s], self.frame.centre_BX)
            if kind != INSERTED:
                self.recent_ids.append(token)
                self.recent_surprisal.append(surprisal)
                self.recent_LE.append(seen.probabilities_SLE[s])
            row: list[Any] = [
                kind,
                chunk,
                self.position + s,
                token,
                *text_SC[s - first],
                *routing_SC[s],
                *distances,
                *(self.clocks.confidences().tolist() if ready else [UNDEFINED] * 3),
                *from_clocks_J.tolist(),
                code,
                self.transitions.follow(code),
                UNDEFINED if previous_LK is None else persistence(ids_LK, previous_LK),
                *self.constraint_values(),
                *usage,
                seen.H_SL[s],
                seen.margins.probability_SL[s],
                ids_LK,
            ]
            records.append(TokenRecord(*row))
        self.position += len(seen.ids_S)
        return records

    def constraint_values(self) -> tuple[float, float, float]:
        """Repetition, surprise and saturation of the windows as they stand."""
        if len(self.recent_ids) < max(NGRAM, SHORT_WINDOW):
            return UNDEFINED, UNDEFINED, UNDEFINED
        share_LE = np.add.reduce(self.recent_LE) / SHORT_WINDOW
        return 1.0 - distinct_4(list(self.recent_ids)), sum(self.recent_surprisal) / SHORT_WINDOW, float(share_LE.max())

    def clone(self) -> Meter:
        copy = Meter(self.frame, self.num_experts)
        copy.load_dict(self.to_dict())
        return copy

    def to_dict(self) -> dict[str, Any]:
        """Arrays and plain values, which share nothing that changes with the meter."""
        return {
            "position": self.position,
            "clocks": self.clocks.to_dict(),
            "transitions": self.transitions.to_dict(),
            "usage": self.usage.to_dict(),
            "previous_LK": self.previous_LK,
            "recent_ids": list(self.recent_ids),
            "recent_surprisal": list(self.recent_surprisal),
            "recent_LE": list(self.recent_LE),
        }

    def load_dict(self, saved: dict[str, Any]) -> None:
        self.position, self.previous_LK = saved["position"], saved["previous_LK"]
        self.clocks.load_dict(saved["clocks"])
        self.transitions.load_dict(saved["transitions"])
        self.usage.load_dict(saved["usage"])
        for window in ("recent_ids", "recent_surprisal", "recent_LE"):
            setattr(self, window, deque(saved[window], maxlen=getattr(self, window).maxlen))
