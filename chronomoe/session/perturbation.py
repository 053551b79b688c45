"""Perturbation: the same moment of a session, gone on from in several ways, so that a difference has one cause.

    R_j = mean over the next j chunks of P_mid(arm) - P_mid(none) ;  W = -sum ln p(inserted token | context)
Every arm starts from one snapshot: same text, model state, clocks, field and random numbers. What an arm inserts costs
work W, and a response without its cost is no energy.

| arm | inserts n tokens of |
|---|---|
| none | nothing |
| neutral | a phrase that asks to go on, repeated and cut to length |
| random | uniformly drawn ids |
| offtopic | the text of another prompt |
| blank | newlines |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chronomoe.session.chunk import Chunk
from chronomoe.session.session import Session
from chronomoe.session.state import SessionState
from chronomoe.settings import InputError

ARMS = ("none", "neutral", "random", "offtopic", "blank")
SCHEDULES = ("once", "every_pause")
DOSES = (0, 1, 2, 4, 8, 16, 32)
"""Tokens."""


@dataclass(frozen=True, kw_only=True)
class Phrases:
    """What arms take their tokens from."""

    neutral: Sequence[int]
    """Such as the tokens of " Please continue:"."""
    offtopic: Sequence[int]
    """At least as many tokens as the largest dose."""
    blank: Sequence[int]
    """Of a newline."""


@dataclass(frozen=True)
class Response:
    chunks: list[Chunk]
    """Fewer than asked for where the text ended."""
    work: float
    """W of everything inserted, nats."""
    inserted: int
    """Tokens, over all pauses."""


def arm_ids(arm: str, dose: int, phrases: Phrases, vocab_size: int, seed: int) -> list[int]:
    """The `dose` tokens that an arm inserts; `seed` is of the random arm alone, and touches no session.

    Raises InputError for an arm that does not exist, or a source too short for its dose.
    """
    if arm not in ARMS:
        raise InputError(f"perturb={arm}: there are {', '.join(ARMS)}")
    if arm == "none" or dose == 0:
        return []
    if arm == "random":
        return torch.randint(vocab_size, (dose,), generator=torch.Generator().manual_seed(seed)).tolist()
    source: Sequence[int] = getattr(phrases, arm)
    if not source or (arm == "offtopic" and len(source) < dose):
        raise InputError(f"perturb={arm}: {len(source)} tokens are too few for a dose of {dose}; give a longer text")
    return list(itertools.islice(itertools.cycle(source), dose))


def respond(
    session: Session, snapshot: SessionState, ids: Sequence[int], *, num_chunks: int, schedule: str = "once"
) -> Response:
    """Go on from the snapshot for so many chunks, with `ids` inserted at its pause, or at every pause that follows."""
    session.restore(snapshot)
    chunks: list[Chunk] = []
    work, inserted = 0.0, 0
    for step in range(num_chunks):
        dose = ids if step == 0 or schedule == "every_pause" else []
        work += session.insert(dose)
        inserted += len(dose)
        chunk = session.next_chunk()
        if chunk is not None:
            chunks.append(chunk)
        if session.state.ended is not None:
            break
    return Response(chunks, work, inserted)
