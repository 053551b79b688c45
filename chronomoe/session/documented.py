"""What the first prototype (ChronoMoE v1) fed into its pressures, faults included: for comparison, never as a result.

    usage_e = share of all positions' visits in the last layer ;  U <- 0.95 U + 0.05 usage, once per generated token
    Hn = H(U) / ln E ;  m_r = U_(1) - U_(2) ;  m = p_(1) - p(token) ;  q, d_meso, d_macro, c_s, v: constants
U is how evenly visits are spread over time and says nothing of a token's confidence: a text that repeats one token
ends at ln K / ln E, which was read as a collapse of entropy. m is 0 whenever the likeliest token is taken. What is left
of P_mid is then 0.640301 and never moves.

Axes: S tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chronomoe.session.pressures import Inputs
from chronomoe.session.reading import Integers
from chronomoe.session.routing_signals import entropy

DECAY = 0.95
CONSTANTS = {"q": 0.8, "d_meso": 0.2, "d_macro": 0.1, "c_s": 0.5, "v": 0.0}
"""Signals the prototype never measured, and what it put in their place."""


class UsageAverage:
    """U, which begins even."""

    def __init__(self, num_experts: int) -> None:
        self.visits_E = np.zeros(num_experts)
        self.usage_E = np.full(num_experts, 1.0 / num_experts)

    def follow(self, ids_SK: Integers) -> None:
        """Take in what one forward read: the last layer's experts of its tokens."""
        self.visits_E += np.bincount(ids_SK.ravel(), minlength=len(self.visits_E))
        self.usage_E = DECAY * self.usage_E + (1 - DECAY) * self.visits_E / self.visits_E.sum()

    @property
    def Hn(self) -> float:
        return float(entropy(self.usage_E)) / math.log(len(self.usage_E))

    @property
    def margin(self) -> float:
        second, first = np.sort(self.usage_E)[-2:]
        return float(first - second)

    def to_dict(self) -> dict[str, Any]:
        return {"visits_E": self.visits_E.copy(), "usage_E": self.usage_E.copy()}

    def load_dict(self, saved: dict[str, Any]) -> None:
        self.visits_E, self.usage_E = saved["visits_E"].copy(), saved["usage_E"].copy()


def documented_inputs(usage_Hn: float, usage_margin: float, m_selected: float, dR: float) -> Inputs:
    return Inputs(Hn=usage_Hn, m_r=usage_margin, dR=dR, m=m_selected, **CONSTANTS)
