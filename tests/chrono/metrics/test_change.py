"""Churn and saturation against sets in plain Python, and what independent selections must read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics.change import agreement, chance_agreement, churn, churn_null, saturation

EXPERTS = 8


def select(tokens: int, seed: int, *, top_k: int = 2, layers: int = 1, skew: float = 1.0) -> Tensor:
    """Random selections [layers, tokens, k] that prefer some experts, whatever the token."""
    generator = torch.Generator().manual_seed(seed)
    favourites_LE = skew * torch.randn(layers, 1, EXPERTS, generator=generator)
    return (favourites_LE + torch.randn(layers, tokens, EXPERTS, generator=generator)).topk(top_k).indices


@given(seed=st.integers(0, 999), top_k=st.integers(1, 4), padded=st.booleans())
def test_agreement_and_its_chance_equal_sets_in_plain_python(seed: int, top_k: int, padded: bool) -> None:
    before_LTK, now_LTK = (select(9, 2 * seed + turn, top_k=top_k, layers=2) for turn in (0, 1))
    real_T = torch.tensor([True] * 6 + [False] * 3) if padded else None
    tokens = range(6 if padded else 9)
    for layer in range(2):
        before, now = ([set(x[layer, t].tolist()) for t in tokens] for x in (before_LTK, now_LTK))
        shared = sum(len(a & b) for a, b in zip(before, now, strict=True)) / len(tokens) / top_k
        # every token of one against every token of the other: what is left when tokens do not matter
        chance = sum(len(a & b) for a in before for b in now) / len(tokens) ** 2 / top_k
        assert agreement(before_LTK, now_LTK, EXPERTS, real_T)[layer].item() == pytest.approx(shared)
        assert chance_agreement(before_LTK, now_LTK, EXPERTS, real_T)[layer].item() == pytest.approx(chance)
        assert churn(before_LTK, now_LTK, EXPERTS, real_T)[layer].item() == pytest.approx(1 - shared)
        assert churn_null(before_LTK, now_LTK, EXPERTS, real_T)[layer].item() == pytest.approx(1 - chance)


def test_the_order_of_a_tokens_experts_is_no_change() -> None:
    before_LTK = select(50, 0)
    assert churn(before_LTK, before_LTK.flip(-1), EXPERTS).tolist() == [0.0]
    assert saturation(before_LTK, before_LTK.flip(-1), EXPERTS).tolist() == [1.0]


@pytest.mark.parametrize("skew", [0.0, 1.5], ids=["balanced", "imbalanced"])
def test_independent_selections_read_the_null_of_churn_and_zero_saturation(skew: float) -> None:
    pairs = [(select(200, 2 * run, skew=skew), select(200, 2 * run + 1, skew=skew)) for run in range(100)]
    excess = torch.cat([churn(*pair, EXPERTS) - churn_null(*pair, EXPERTS) for pair in pairs])
    assert abs(excess.mean()) < 3 * excess.std() / len(excess) ** 0.5
    above_chance = torch.cat([saturation(*pair, EXPERTS) for pair in pairs])
    assert abs(above_chance.mean()) < 3 * above_chance.std() / len(above_chance) ** 0.5
    if not skew:
        null = torch.cat([churn_null(*pair, EXPERTS) for pair in pairs])
        assert null.mean().item() == pytest.approx(1 - 2 / EXPERTS, abs=0.001)


def test_swapping_part_of_the_tokens_gives_a_saturation_in_between() -> None:
    anchor_LTK, other_LTK = select(4000, 0, skew=0.0), select(4000, 1, skew=0.0)
    half_LTK = torch.cat((anchor_LTK[:, :2000], other_LTK[:, 2000:]), dim=1)
    assert saturation(half_LTK, anchor_LTK, EXPERTS).item() == pytest.approx(0.5, abs=0.03)


def test_routing_that_cannot_differ_has_no_saturation() -> None:
    constant_LTK = torch.tensor([0, 1]).expand(1, 20, 2)
    assert saturation(constant_LTK, constant_LTK, EXPERTS).isnan().all()
    assert churn(constant_LTK, constant_LTK, EXPERTS).tolist() == [0.0]
    assert churn(constant_LTK[:, :0], constant_LTK[:, :0], EXPERTS).isnan().all()
