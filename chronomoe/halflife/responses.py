"""What an interruption does to the pressure of the chunks that follow, and what it costs.

    R_j = mean of P_mid over the next j chunks, minus that of the same moment gone on from without interruption
    W = -sum ln p(inserted token | context), nats;   efficacy = R_j / W
Every arm starts from the same saved moment with the same random numbers. Differences are averaged per prompt,
intervals resample prompts, p-values flip the signs of prompts and are corrected (Holm) over arms and doses. The
sustaining dose is the least one whose pressure over the next chunks stays above half of its start with its whole
interval.

Axes: P prompts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from chronomoe.decay.entropy import mean_interval
from chronomoe.decay.intervals import Interval
from chronomoe.decay.series import in_order
from chronomoe.halflife.recording import Recording
from chronomoe.study.significance import holm, sign_flip_p

HORIZONS = (1, 3, 5)
"""Chunks; those beyond what was followed are left out."""


class Pair(NamedTuple):
    """One moment gone on from in two ways: recording.py's rows of responses."""

    prompt: str
    row: dict[str, Any]
    same: dict[str, Any]
    """Without interruption."""


class Cell(NamedTuple):
    """One arm at one dose."""

    arm: str
    dose: int
    n: int
    """Interruptions that count."""
    left_out: int
    """Pairs in which a side ended at once or repeats itself."""
    prompts: int
    response: dict[int, Interval]
    """j -> R_j over prompts."""
    p: float
    corrected_p: float
    """Of R at the longest horizon."""
    work: float
    """Mean W, nats."""
    efficacy: float | None
    """R at the longest horizon over W; None where nothing was inserted."""
    level: Interval
    """Mean P_mid over the chunks that followed."""


def responses(recordings: Sequence[Recording], followed: int) -> list[Cell]:
    """Of all interruptions, each followed for so many chunks; empty where there were none."""
    horizons = [j for j in HORIZONS if j <= followed]
    found: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for recording in recordings:
        baseline = {row["at"]: row for row in recording.responses if row["arm"] == "none"}
        for row in recording.responses:
            same = baseline[row["at"]]
            if row["arm"] != "none" and is_sound(row) and is_sound(same):
                found[row["arm"], row["dose"]].append(Pair(recording.prompt, row, same))
    made = Counter(
        (row["arm"], row["dose"]) for recording in recordings for row in recording.responses if row["arm"] != "none"
    )
    p_values = {key: sign_flip_p(by_prompt(rows, horizons[-1])) for key, rows in found.items()}
    corrected = holm(p_values)
    return [cell(key, rows, horizons, p_values[key], corrected[key], made[key]) for key, rows in found.items()]


def is_sound(row: dict[str, Any]) -> bool:
    """Whether there are chunks behind an interruption, none of them degenerate."""
    return bool(row["P_mid"]) and not any(row["degenerate"])


def cell(
    key: tuple[str, int],
    rows: list[Pair],
    horizons: Sequence[int],
    p: float,
    corrected_p: float,
    made: int,
) -> Cell:
    prompt_S = in_order([prompt for prompt, _, _ in rows])
    response = {
        j: mean_interval(np.array([difference(row, same, j) for _, row, same in rows]), prompt_S) for j in horizons
    }
    work = float(np.mean([row["work"] for _, row, _ in rows]))
    last = response[horizons[-1]].estimate
    return Cell(
        arm=key[0],
        dose=key[1],
        n=len(rows),
        left_out=made - len(rows),
        prompts=int(prompt_S.max()) + 1,
        response=response,
        p=p,
        corrected_p=corrected_p,
        work=work,
        efficacy=None if work == 0 or last is None else last / work,
        level=mean_interval(np.array([np.mean(row["P_mid"]) for _, row, _ in rows]), prompt_S),
    )


def difference(row: dict[str, Any], same: dict[str, Any], horizon: int) -> float:
    """Over as many chunks as both have, up to the horizon."""
    j = min(horizon, len(row["P_mid"]), len(same["P_mid"]))
    return float(np.mean(row["P_mid"][:j]) - np.mean(same["P_mid"][:j]))


def by_prompt(rows: list[Pair], horizon: int) -> np.ndarray:
    """Mean difference of every prompt, [P]."""
    of: dict[str, list[float]] = defaultdict(list)
    for prompt, row, same in rows:
        of[prompt].append(difference(row, same, horizon))
    return np.array([np.mean(values) for values in of.values()])


def sustaining_dose(cells: Sequence[Cell], arm: str, threshold: float) -> int | None:
    """The least dose whose level stays above the threshold with its interval; None where none does."""
    doses = [c.dose for c in cells if c.arm == arm and c.level.low is not None and c.level.low > threshold]
    return min(doses, default=None)
