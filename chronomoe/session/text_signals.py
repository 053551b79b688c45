"""What the model's own next-token distribution says of the text, and when a text has broken down.

    m = p_(1) - p_(2) of softmax(logits) at temperature 1 ;  surprisal = -ln p(token | context)  (nats)
    distinct-4 = different 4-grams / 4-grams ;  repetition = 1 - distinct-4
Signals are of the unmodified distribution, whatever tokens are drawn from. `m_selected`, p_(1) - p(token), is what the
first prototype called its margin: identically 0 under greedy decoding.

Axes: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chronomoe.session.reading import Floats

NGRAM = 4
WINDOW = 100
"""Last tokens in which repetition is looked for."""
JUDGED_FROM = 40
"""Generated tokens before which no text is called degenerate."""
LEAST_DISTINCT, MOST_OFTEN = 0.30, 8


class TextSignals(NamedTuple):
    """fp64 [S]."""

    surprisal: Floats
    p1: Floats
    p2: Floats
    m: Floats
    """In [0, 1]."""
    m_nats: Floats
    """ln p_(1) - ln p_(2), at least 0."""
    m_selected: Floats
    """p_(1) - p(token)."""


@torch.inference_mode()
def read_text(before_SV: Tensor, ids_S: Sequence[int]) -> TextSignals:
    """Of tokens that were drawn or given, from the logits before each of them."""
    logp_SV = before_SV.float().log_softmax(dim=-1)
    top_S2 = logp_SV.topk(2, dim=-1).values.double().numpy()
    own_S = logp_SV.gather(-1, torch.tensor(ids_S)[:, None])[:, 0].double().numpy()
    p1, p2 = np.exp(top_S2).T
    return TextSignals(-own_S, p1, p2, p1 - p2, top_S2[:, 0] - top_S2[:, 1], p1 - np.exp(own_S))


def ngrams(ids: Sequence[int]) -> list[tuple[int, ...]]:
    return list(zip(*(ids[start:] for start in range(NGRAM)), strict=False))


def distinct_4(ids: Sequence[int]) -> float:
    """In (0, 1], of at least four tokens; 1 when no 4-gram comes twice."""
    grams = ngrams(ids)
    return len(set(grams)) / len(grams)


def is_degenerate(generated: Sequence[int]) -> bool:
    """Whether the last WINDOW generated tokens repeat themselves: too few different 4-grams, one of them too often, or
    a single token. Never before JUDGED_FROM tokens."""
    if len(generated) < JUDGED_FROM:
        return False
    recent = generated[-WINDOW:]
    often = max(Counter(ngrams(recent)).values())
    return distinct_4(recent) < LEAST_DISTINCT or often >= MOST_OFTEN or len(set(recent)) == 1
