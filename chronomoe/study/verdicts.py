"""What is said of an arm's validation loss: by its interval, and by the rule that was documented for the controller.

    interval:    better if the 95% interval of the mean paired difference is below 0, worse if above; else, and with
                 fewer than INTERVAL_PAIRS pairs, not told apart
    documented:  robust if at least two in three pairs are better, partial if one in three is, else not robust
A pair is better when its loss is lower and, where both runs have a specialisation, that is higher too (Pareto). The
rule says "67% of seeds"; two of three seeds were meant to pass. It is lenient: an arm that does nothing passes it, with
loss alone, as often as coins fall heads in two of three throws. That is `chance`: half of the time at 3 seeds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from chronomoe.study.comparison import Arm
from chronomoe.study.pairs import Effect

ROBUST, PARTIAL = 2 / 3, 1 / 3
ROUNDING = 1e-9
INTERVAL_PAIRS = 3
"""An interval of one pair is a point, of two the stretch between them."""


class Verdict(NamedTuple):
    interval: str
    """`better`, `worse` or `not told apart`."""
    documented: str
    """`robust`, `partial` or `not robust`."""
    better: int
    """Pairs the documented rule counts."""
    n: int
    pareto: bool
    """Whether specialisation was asked for as well."""
    chance: float
    """How often an arm that does nothing is called robust, its numbers being as likely to rise as to fall."""


def verdict(arm: Arm, baseline: Arm) -> Verdict | None:
    """None without a pair that has a validation loss."""
    found = arm.effects.get("val_loss")
    if found is None:
        return None
    mine, theirs = arm.values["val_loss"], baseline.values["val_loss"]
    more, less = (side.values.get("specialisation", {}) for side in (arm, baseline))
    seeds = mine.keys() & theirs.keys()
    pareto = bool(seeds) and seeds <= more.keys() & less.keys()
    better = sum(mine[seed] < theirs[seed] and (not pareto or more[seed] > less[seed]) for seed in seeds)
    return Verdict(
        interval=of_interval(found),
        documented=of_share(better / found.n),
        better=better,
        n=found.n,
        pareto=pareto,
        chance=robust_by_chance(found.n, 0.25 if pareto else 0.5),
    )


def of_interval(found: Effect) -> str:
    """Of a metric that is better when lower."""
    if found.n < INTERVAL_PAIRS or found.ci_low <= 0 <= found.ci_high:
        return "not told apart"
    return "better" if found.ci_high < 0 else "worse"


def of_share(share: float) -> str:
    if share >= ROBUST - ROUNDING:
        return "robust"
    return "partial" if share >= PARTIAL - ROUNDING else "not robust"


def robust_by_chance(num_pairs: int, better: float) -> float:
    """Probability that two in three of so many pairs are better when each is with probability `better`."""
    return sum(
        math.comb(num_pairs, count) * better**count * (1 - better) ** (num_pairs - count)
        for count in range(num_pairs + 1)
        if of_share(count / num_pairs) == "robust"
    )
