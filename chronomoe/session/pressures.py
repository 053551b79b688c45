"""Session pressure: how much speaks for going on, from measured signals; and what it decides. Pure functions.

    P_fast = clip(-0.5 H' + 0.3 tanh m_r + 0.2 tanh dR, -1, 1)
    P_mid  = clip(0.4 tanh(1 - m) + 0.3 tanh q + 0.2 tanh(1/(1 + d_meso)) + 0.1 tanh dR, -1, 1)
    P_slow = clip(c_s (0.3 tanh(1/(1 + d_macro)) - 0.7 tanh v), -1, 1)
    w_fast = clip(min(0.2, 1 - H'), 0, 0.2);  w_mid = clip(0.5 + 0.5 rho, 0.5, 1);  w_slow = clip(0.3 c_s, 0, 0.3)
    P_net  = clip(w_fast P_fast + w_mid P_mid + w_slow P_slow, -1, 1)
The formulas and weights are ChronoMoE v1's and are constants: changing one makes runs incomparable. Weights do not sum
to 1. H' is a scaled entropy: Hn (`norm`), Hn/2 (`norm_half`, what the first prototype evaluated) or Hn ln E / 2
(`raw_half`, nats). For m in [0, 1] every m-term is at least 0: P_mid stays in [-0.0762, 0.7616].

There is no default for any signal: what is missing or not a number raises, by name.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from chronomoe.settings import RunFailed

ENTROPY_SCALES = ("norm", "norm_half", "raw_half")
RHO_RULES = ("documented", "carry", "design")
FAST_INSTABILITY, NEGATIVE_PRESSURE = "fast_instability", "negative_pressure"
CHUNK_COMPLETE = "multistep_chunk_complete"
INSTABILITY = -0.7
"""P_fast below it is called unstable; measured inputs under `norm` reach -0.652 only."""


class Inputs(NamedTuple):
    """The signals of one chunk, after they were averaged or taken from its last token."""

    Hn: float
    """Entropy of the clean router distribution over ln E, in [0, 1]."""
    m_r: float
    """Router margin, in [0, 1]."""
    dR: float
    """Change of coherence, in [-1, 1]."""
    m: float
    """Token margin, in [0, 1]."""
    q: float
    """Transition probability or routing persistence, in [0, 1]."""
    d_meso: float
    d_macro: float
    c_s: float
    """Confidence of the slow clock, in [0, 1]."""
    v: float | None
    """Constraint penalty, at least 0. None where the configuration deletes its term, which is no measured 0."""


class Pressures(NamedTuple):
    P_fast: float
    P_mid: float
    P_slow: float
    w_fast: float
    w_mid: float
    w_slow: float
    P_net: float


def measured(name: str, value: float | None) -> float:
    """The value of a signal. Raises RunFailed, naming it, where there is none."""
    if value is None or not math.isfinite(value):
        raise RunFailed(
            f"signal {name} is {'missing' if value is None else value}: it must be measured, and nothing "
            "stands in for it"
        )
    return value


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def scaled_entropy(Hn: float, scale: str, num_experts: int) -> float:
    return {"norm": Hn, "norm_half": Hn / 2, "raw_half": Hn * math.log(num_experts) / 2}[scale]


def fast(entropy: float, m_r: float, dR: float) -> float:
    """`entropy` is scaled."""
    return clip(-0.5 * entropy + 0.3 * math.tanh(m_r) + 0.2 * math.tanh(dR), -1, 1)


def mid(m: float, q: float, d_meso: float, dR: float) -> float:
    proximity = math.tanh(1 / (1 + d_meso))
    return clip(0.4 * math.tanh(1 - m) + 0.3 * math.tanh(q) + 0.2 * proximity + 0.1 * math.tanh(dR), -1, 1)


def slow(c_s: float, d_macro: float, v: float | None) -> float:
    penalty = 0.0 if v is None else 0.7 * math.tanh(v)  # None: the term does not exist
    return clip(c_s * (0.3 * math.tanh(1 / (1 + d_macro)) - penalty), -1, 1)


def press(inputs: Inputs, *, rho: float, entropy_scale: str, num_experts: int) -> Pressures:
    """Pressures and weights of a chunk, under the residual intent before it. Raises RunFailed for a signal without a
    value."""
    for name, value in inputs._asdict().items():
        if not (name == "v" and value is None):
            measured(name, value)
    entropy = scaled_entropy(inputs.Hn, entropy_scale, num_experts)
    P_fast = fast(entropy, inputs.m_r, inputs.dR)
    P_mid = mid(inputs.m, inputs.q, inputs.d_meso, inputs.dR)
    P_slow = slow(inputs.c_s, inputs.d_macro, inputs.v)
    w_fast = clip(min(0.2, 1 - entropy), 0, 0.2)
    w_mid = clip(0.5 + 0.5 * measured("rho", rho), 0.5, 1)
    w_slow = clip(min(0.3, 0.3 * inputs.c_s), 0, 0.3)
    P_net = clip(w_fast * P_fast + w_mid * P_mid + w_slow * P_slow, -1, 1)
    return Pressures(P_fast, P_mid, P_slow, w_fast, w_mid, w_slow, P_net)


def pause_reason(P_fast: float, P_net: float, mode: str) -> str | None:
    """Why generation pauses after a chunk, the first rule that holds; None: it goes on."""
    if P_fast < INSTABILITY:
        return FAST_INSTABILITY
    if P_net < 0:
        return NEGATIVE_PRESSURE
    return CHUNK_COMPLETE if mode == "multistep" else None


def next_rho(rho: float, pressures: Pressures, reason: str | None, rule: str, inputs: Inputs, share: float) -> float:
    """Residual intent after a chunk, in [0, 1].

    | rule | paused and P_net < 0 | paused otherwise | not paused |
    |---|---|---|---|
    | documented | 0 | rho / 2 | 0.7 rho + 0.3 max(0, P_mid) |
    | carry | 0 | as documented, but a complete chunk of multistep counts as not paused | the same |
    | design | max(0, P_mid) (1 - share)(2 - m) g in all cases, g = 1 if dR < 0 else max(0.5, 1 - dR) | | |
    `share`: tokens of the chunk over `chunk_tokens`, so that `design` is 0 at every full chunk. Under `documented`,
    multistep pauses at every chunk: a rho of 0 stays 0.
    """
    willing = max(0.0, pressures.P_mid)
    if rule == "design":
        gain = 1.0 if inputs.dR < 0 else max(0.5, 1 - inputs.dR)
        return clip(willing * (1 - share) * (2 - inputs.m) * gain, 0, 1)
    if reason is None or (rule == "carry" and reason == CHUNK_COMPLETE):
        return clip(0.7 * rho + 0.3 * willing, 0, 1)
    return 0.0 if pressures.P_net < 0 else clip(0.5 * rho, 0, 1)
