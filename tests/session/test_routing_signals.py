"""Entropies, margins and persistence at their ends, against definitions and against chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.session.routing_signals import (
    entropy,
    margins,
    persistence,
    persistence_by_chance,
    usage_and_information,
)

SEEDS = st.integers(0, 10_000)


def draw(seed: int, shape: tuple[int, ...] = (9, 3, 6)) -> np.ndarray:
    z_SLE = 3 * np.random.default_rng(seed).standard_normal(shape)
    return np.exp(z_SLE) / np.exp(z_SLE).sum(axis=-1, keepdims=True)


def test_entropy_of_nothing_known_and_of_everything_known() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(math.log(8))
    assert entropy(np.eye(8)[3]) == 0.0


@given(SEEDS)
def test_entropy_is_its_definition_and_lies_in_its_range(seed: int) -> None:
    p_SLE = draw(seed)
    H_SL = entropy(p_SLE)
    assert H_SL[4, 1] == pytest.approx(-sum(p * math.log(p) for p in p_SLE[4, 1]))
    assert H_SL.min() >= 0
    assert H_SL.max() <= math.log(6)


@given(SEEDS)
def test_usage_is_at_least_as_even_as_tokens_are_unsure(seed: int) -> None:
    p_SLE = draw(seed)
    usage_L, information_L = usage_and_information(p_SLE)
    np.testing.assert_allclose(usage_L - entropy(p_SLE).mean(axis=0), information_L, atol=1e-12)
    assert (information_L > 0).all()


def test_information_is_nothing_for_equal_tokens_and_all_for_certain_different_ones() -> None:
    assert usage_and_information(np.repeat(draw(0)[:1], 5, axis=0))[1] == pytest.approx(np.zeros(3), abs=1e-12)
    certain_SLE = np.eye(4)[np.arange(8) % 4][:, None, :]
    assert usage_and_information(certain_SLE)[1] == pytest.approx([math.log(4)])


def test_margins_of_an_example() -> None:
    p_E, z_E = np.array([0.1, 0.5, 0.15, 0.25]), np.array([-1.0, 3.0, 0.5, 1.5])
    found = margins(p_E[None, None], z_E[None, None], top_k=2)
    assert [float(value[0, 0]) for value in found] == pytest.approx([0.25, 1.5, 1.0])


@given(SEEDS)
def test_margins_do_not_depend_on_the_order_of_experts(seed: int) -> None:
    p_SLE = draw(seed)
    order = np.random.default_rng(seed).permutation(6)
    one, two = (margins(p, np.log(p), 2) for p in (p_SLE, p_SLE[..., order]))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all((part >= 0).all() for part in one)


def test_persistence_is_the_mean_jaccard_index() -> None:
    one, two = np.array([[0, 1], [2, 3]]), np.array([[1, 5], [3, 2]])
    assert persistence(one, two) == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "chance"), [(8, 2, 0.179), (64, 8, 0.0705), (64, 6, 0.0532), (60, 4, 0.0391)]
)
def test_persistence_by_chance_is_the_table_and_what_simulation_reads(
    num_experts: int, top_k: int, chance: float
) -> None:
    assert persistence_by_chance(num_experts, top_k) == pytest.approx(chance, abs=5.1e-4)
    ids = np.random.default_rng(0).random((20_000, num_experts)).argsort(axis=1)[:, :top_k]
    read = [persistence(a[None], b[None]) for a, b in zip(ids[::2], ids[1::2], strict=True)]
    assert np.mean(read) == pytest.approx(chance, abs=4 * np.std(read) / 100)
