"""Exact capacity and who gets it, against fractions and a loop over the line at each expert.

Axes: T tokens, K experts per token, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.capacity import capacity_of, first_come, place_in_line, room_of

E = 4


@given(
    tokens=st.integers(0, 2**21),
    top_k=st.integers(1, 8),
    num_experts=st.integers(1, 512),
    factor=st.decimals("0.001", "64", places=3),
)
def test_capacity_is_the_exact_ceiling_on_the_host_and_on_the_device(
    tokens: int, top_k: int, num_experts: int, factor: Fraction
) -> None:
    expected = math.ceil(Fraction(tokens * top_k, num_experts) * Fraction(str(factor)))
    assert capacity_of(tokens * top_k, num_experts, float(factor)) == expected
    assert int(capacity_of(torch.tensor(tokens * top_k), num_experts, float(factor))) == expected


@pytest.mark.parametrize(
    ("assignments", "num_experts", "factor", "slots"), [(10, 1, 1.1, 11), (30, 3, 0.1, 1), (100, 1, 0.55, 55)]
)
def test_a_decimal_factor_is_no_binary_one(assignments: int, num_experts: int, factor: float, slots: int) -> None:
    assert capacity_of(assignments, num_experts, factor) == slots
    assert (
        math.ceil(Fraction(assignments, num_experts) * Fraction(factor)) != slots
    )  # the binary number that 1.1 is stored as


@given(num_tokens=st.integers(1, 500), num_experts=st.integers(1, 16), top_k=st.integers(1, 4))
def test_a_factor_of_one_gives_the_fair_share(num_tokens: int, num_experts: int, top_k: int) -> None:
    slots = capacity_of(num_tokens * top_k, num_experts, 1.0)
    assert (slots - 1) * num_experts < num_tokens * top_k <= slots * num_experts


def draw_choices(num_tokens: int, top_k: int, seed: int) -> Tensor:
    return torch.rand(num_tokens, E, generator=torch.Generator().manual_seed(seed)).topk(top_k).indices


def one_after_another(ids_TK: Tensor, room: int, real: list[bool]) -> list[list[bool]]:
    """Let tokens step up to their experts' lines in the order of the batch."""
    taken = [0] * E
    kept = []
    for ids, is_real in zip(ids_TK.tolist(), real, strict=True):
        kept.append([is_real and taken[expert] < room for expert in ids])
        for expert in ids:
            taken[expert] += is_real
    return kept


@given(
    real=st.lists(st.booleans(), min_size=1, max_size=30),
    top_k=st.integers(1, E),
    room=st.integers(0, 12),
    seed=st.integers(0, 99),
)
def test_the_first_tokens_of_the_batch_get_the_room_and_padding_gets_none(
    real: list[bool], top_k: int, room: int, seed: int
) -> None:
    ids_TK, real_T = draw_choices(len(real), top_k, seed), torch.tensor(real)
    kept_TK = first_come(ids_TK, room, E, real_T)
    assert kept_TK.tolist() == one_after_another(ids_TK, room, real)
    kept_E, lost_E = (ids_TK[mask_TK].bincount(minlength=E) for mask_TK in (kept_TK, ~kept_TK & real_T[:, None]))
    assert torch.equal(kept_E + lost_E, ids_TK[real_T].flatten().bincount(minlength=E))
    assert int(kept_E.max()) <= room


@given(waiting=st.lists(st.booleans(), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_a_place_in_line_counts_those_waiting_ahead_at_the_same_expert(waiting: list[bool], seed: int) -> None:
    ids_N = torch.randint(E, (len(waiting),), generator=torch.Generator().manual_seed(seed))
    place_N = place_in_line(ids_N, torch.tensor(waiting), E)
    ids = ids_N.tolist()
    for n, expert in enumerate(ids):
        assert place_N[n] == sum(w and e == expert for w, e in zip(waiting[:n], ids, strict=False))


def test_room_is_counted_from_real_tokens() -> None:
    real_T = torch.arange(20) < 13
    assert int(room_of(20, 2, E, 1.25, real_T)) == room_of(13, 2, E, 1.25, None) == 9


@pytest.mark.parametrize("make", [lambda real_T: None, lambda real_T: real_T], ids=["all real", "with padding"])
def test_a_batch_without_tokens_has_no_room(make: Callable[[Tensor], Tensor | None]) -> None:
    empty_TK, real_T = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    assert int(room_of(0, 2, E, 1.0, make(real_T))) == 0
    assert first_come(empty_TK, 0, E, make(real_T)).shape == (0, 2)
