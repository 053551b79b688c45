"""How many tokens an expert has room for, and who gets the room.

    C = ceil(A factor / E)      A: assignments of real tokens, T k; the factor is taken as the decimal it is written as
Integers only, so that no rounding decides: ceil(10 * 1.1) is 11. Tokens come first in the order in which they stand in
the flattened batch, whatever their scores: a later token never takes a slot from an earlier one, so dropping does not
look ahead. The sequences of a batch do share the room, the first before the second. Padding takes none.

Axes: T tokens, K experts per token, E experts, N = T*K assignments.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeVar

import torch
from torch import Tensor

Amount = TypeVar("Amount", int, Tensor)


def capacity_of(assignments: Amount, num_experts: int, factor: float) -> Amount:
    """Slots of each expert: an int, or int64 on the device where the number of assignments is known only there."""
    numerator, denominator = Fraction(str(factor)).as_integer_ratio()
    return -(-assignments * numerator // (num_experts * denominator))


def room_of(num_tokens: int, per_token: int, num_experts: int, factor: float, real_T: Tensor | None) -> int | Tensor:
    """Capacity counted from the real tokens, which with padding only the device knows."""
    if real_T is None:
        return capacity_of(num_tokens * per_token, num_experts, factor)
    return capacity_of(real_T.sum() * per_token, num_experts, factor)


def place_in_line(expert_ids_N: Tensor, waiting_N: Tensor, num_experts: int) -> Tensor:
    """How many of those who wait stand before each assignment at its expert, int64 [N]; only theirs is meant."""
    waiting_NE = torch.zeros(len(expert_ids_N), num_experts, dtype=torch.int64, device=expert_ids_N.device)
    waiting_NE.scatter_(1, expert_ids_N[:, None], waiting_N[:, None].long())
    return (waiting_NE.cumsum(dim=0) - waiting_NE).gather(1, expert_ids_N[:, None]).squeeze(1)


def first_come(expert_ids_TK: Tensor, room: int | Tensor, num_experts: int, real_T: Tensor | None) -> Tensor:
    """Which assignments find room at their expert, bool [T, K]; padding finds none."""
    waiting_TK = torch.ones_like(expert_ids_TK, dtype=torch.bool)
    if real_T is not None:
        waiting_TK = waiting_TK & real_T[:, None]
    place_N = place_in_line(expert_ids_TK.flatten(), waiting_TK.flatten(), num_experts)
    return waiting_TK & (place_N.view_as(expert_ids_TK) < room)
