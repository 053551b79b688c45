"""Schedules of hybrid stacks: the tables of the design, and what holds for every length and share."""

from __future__ import annotations

from fractions import Fraction
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.model.schedule import SCHEDULES, hybrid, interleave, top

QUARTER = Fraction(1, 4)
HYBRID = {
    12: [6, 11, 12],
    24: [6, 12, 17, *range(22, 25)],
    36: [7, 14, 20, 26, *range(32, 37)],
    64: [7, 14, 21, 27, 33, 39, 45, 51, *range(57, 65)],
    96: [7, 14, 21, 28, 35, 42, 49, 55, 61, 67, 73, 79, *range(85, 97)],
}
lengths = st.integers(0, 299)
shares = st.integers(0, 20).map(lambda twentieths: Fraction(twentieths, 20)) | st.fractions(0, 1, max_denominator=60)


def attending(blocks: list[str]) -> list[int]:
    return [number for number, kind in enumerate(blocks, start=1) if kind == "T"]


def runs_of_rwkv(blocks: list[str]) -> list[int]:
    return [len(list(run)) for kind, run in groupby(blocks) if kind == "R"]


@pytest.mark.parametrize("layers", HYBRID)
def test_the_tables_of_the_design(layers: int) -> None:
    assert attending(hybrid(layers, QUARTER)) == HYBRID[layers]
    assert attending(interleave(layers, QUARTER)) == list(range(4, layers + 1, 4))
    assert attending(top(layers, QUARTER)) == list(range(layers - layers // 4 + 1, layers + 1))


@pytest.mark.parametrize("name", SCHEDULES)
@given(layers=lengths, share=shares)
def test_every_schedule_has_its_length_and_its_share_and_ends_with_attention(
    name: str, layers: int, share: Fraction
) -> None:
    blocks = SCHEDULES[name](layers, share)
    count = blocks.count("T")
    assert len(blocks) == layers == count + blocks.count("R")
    assert layers == 0 or share - Fraction(1, layers) < Fraction(count, layers) <= share
    assert not count or blocks[-1] == "T"
    assert blocks == SCHEDULES[name](layers, share)


@given(layers=lengths, share=shares)
def test_runs_between_attention_are_even_but_in_the_top_schedule(layers: int, share: Fraction) -> None:
    assert len(runs_of_rwkv(top(layers, share))) <= 1
    for schedule in (interleave, hybrid):
        blocks = schedule(layers, share)
        runs = runs_of_rwkv(blocks)
        if blocks.count("T") > 1 and blocks.count("R") >= blocks.count("T"):
            assert max(runs) - min(runs) <= 1
    runs = runs_of_rwkv(hybrid(layers, share))
    assert runs == sorted(runs, reverse=True)


@given(every=st.integers(1, 12), times=st.integers(1, 20))
def test_a_share_of_one_in_m_attends_at_the_multiples_of_m(every: int, times: int) -> None:
    layers = every * times
    assert attending(interleave(layers, Fraction(1, every))) == list(range(every, layers + 1, every))


@given(layers=st.integers(1, 299), share=shares)
def test_half_of_the_hybrids_attention_is_spread_and_half_on_top(layers: int, share: Fraction) -> None:
    blocks = hybrid(layers, share)
    count = blocks.count("T")
    on_top = count - count // 2
    assert blocks[layers - on_top :] == ["T"] * on_top
    assert blocks[: layers - on_top].count("T") == count // 2


@pytest.mark.parametrize("share", [Fraction(-1, 9), Fraction(10, 9)])
def test_a_share_beyond_the_whole_is_refused(share: Fraction) -> None:
    with pytest.raises(ValueError, match="not within 0 and 1"):
        top(8, share)
