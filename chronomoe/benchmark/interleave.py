"""Time several processes in turn, so that a machine that slows down slows them all.

Every repeat asks each once; each repeat begins with another, because the place in the order may matter. Whoever fails
is left out from then on, and the others go on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple

from tqdm import tqdm

from chronomoe.benchmark.trainee import Timing
from chronomoe.benchmark.worker import Worker, WorkerFailed


class Measured(NamedTuple):
    timings: dict[str, list[Timing]]
    """One timing a repeat for every system that came through."""
    errors: dict[str, str]
    """What went wrong with the others, one line each."""


def interleave(workers: Mapping[str, Worker], *, repeats: int, steps: int, warmup_steps: int) -> Measured:
    """`workers` serve Trainees; they are started here, one after the other."""
    errors: dict[str, str] = {}
    for key, worker in tqdm(workers.items(), desc="start", unit="system"):
        try:
            worker.start()
            if warmup_steps:
                worker.ask("run", warmup_steps)
        except WorkerFailed as failure:
            note_failure(errors, key, failure)
    timings: dict[str, list[Timing]] = {key: [] for key in workers if key not in errors}
    for repeat in tqdm(range(repeats), desc="repeats"):
        for key in rotated([key for key in timings if key not in errors], repeat):
            try:
                timings[key].append(workers[key].ask("run", steps))
            except WorkerFailed as failure:
                note_failure(errors, key, failure)
    return Measured({key: found for key, found in timings.items() if key not in errors}, errors)


def rotated(keys: list[str], by: int) -> list[str]:
    begin = by % len(keys) if keys else 0
    return keys[begin:] + keys[:begin]


def note_failure(errors: dict[str, str], key: str, failure: WorkerFailed) -> None:
    errors[key] = str(failure)
    tqdm.write(f"{key}: {failure}", file=sys.stderr)
