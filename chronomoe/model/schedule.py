"""Which blocks of a hybrid stack attend and which are recurrent: T a transformer block, R an RWKV block.

    n = floor(share * L) of L blocks are T, with `share` an exact fraction
| schedule | the T blocks |
|---|---|
| top | the last n, nearest the output |
| interleave | numbers ceil(j L / n), j = 1..n: every 4th for a share of 1/4 |
| hybrid | floor(n/2) spread, the others on top: the R blocks form floor(n/2) + 1 runs whose lengths differ by at |
|        | most one, the longer first; a T follows each but the last, which the n - floor(n/2) on top follow |
Blocks are numbered from 1 here; the result is a plain list. Source: the CDRmix design, whose own hybrid lost blocks
when a spread one fell on the top.
"""

from __future__ import annotations

from fractions import Fraction

TRANSFORMER, RWKV = "T", "R"


def top(num_layers: int, share: Fraction) -> list[str]:
    attending = num_attending(num_layers, share)
    return [RWKV] * (num_layers - attending) + [TRANSFORMER] * attending


def interleave(num_layers: int, share: Fraction) -> list[str]:
    attending = num_attending(num_layers, share)
    places = {-(-j * num_layers // attending) for j in range(1, attending + 1)}
    return [TRANSFORMER if number in places else RWKV for number in range(1, num_layers + 1)]


def hybrid(num_layers: int, share: Fraction) -> list[str]:
    attending = num_attending(num_layers, share)
    spread, recurrent = attending // 2, num_layers - attending
    short, longer = divmod(recurrent, spread + 1)
    blocks: list[str] = []
    for run in range(spread + 1):
        blocks += [RWKV] * (short + (run < longer))
        blocks += [TRANSFORMER] if run < spread else []
    return blocks + [TRANSFORMER] * (attending - spread)


def num_attending(num_layers: int, share: Fraction) -> int:
    """Raises ValueError for a share outside [0, 1]."""
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share} is not within 0 and 1")
    return share.numerator * num_layers // share.denominator


SCHEDULES = {"top": top, "interleave": interleave, "hybrid": hybrid}
