"""Alignment of field and load: 1 where it is earned, 0 where nothing is known; regression to the mean earns nothing.

Axes: L repeated layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from chronomoe.chrono.metrics.alignment import follow, knowledge
from chronomoe.chrono.observation import share

LAYERS, EXPERTS, TOKENS, TOP_K = 400, 8, 512, 2


def shares_of(logits_LTE: Tensor, bias_LE: Tensor | float = 0.0) -> Tensor:
    steered_LTE = logits_LTE + (bias_LE[:, None] if isinstance(bias_LE, Tensor) else bias_LE)
    chosen_LTE = torch.zeros_like(steered_LTE).scatter_(-1, steered_LTE.topk(TOP_K, dim=-1).indices, 1.0)
    return share(chosen_LTE.sum(dim=1))


def plant(seed: int, *, taste: float) -> tuple[Tensor, Tensor]:
    """Two independent batches of tokens of many routers with fixed preferences of size `taste`."""
    generator = torch.Generator().manual_seed(seed)
    taste_LE = taste * torch.randn(LAYERS, 1, EXPERTS, generator=generator)
    batches = [taste_LE + torch.randn(LAYERS, TOKENS, EXPERTS, generator=generator) for _ in range(2)]
    return batches[0], batches[1]


def test_a_field_that_knows_the_load_reads_near_one() -> None:
    earlier_LTE, now_LTE = plant(0, taste=0.5)
    bias_LE = 1.0 / EXPERTS - shares_of(earlier_LTE)
    followed_L = follow(shares_of(now_LTE, 2 * bias_LE), shares_of(now_LTE), shares_of(earlier_LTE))
    assert followed_L.mean() > 0.9
    assert knowledge(bias_LE, shares_of(now_LTE)).mean() > 0.95


def test_a_field_that_feeds_the_favourites_reads_negative() -> None:
    earlier_LTE, now_LTE = plant(1, taste=0.5)
    bias_LE = shares_of(earlier_LTE) - 1.0 / EXPERTS
    assert follow(shares_of(now_LTE, 2 * bias_LE), shares_of(now_LTE), shares_of(earlier_LTE)).mean() < -0.9
    assert knowledge(bias_LE, shares_of(now_LTE)).mean() < -0.95


def test_a_sham_field_reads_zero_however_large_it_is() -> None:
    earlier_LTE, now_LTE = plant(2, taste=0.5)
    sham_LE = torch.randn(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(7))
    standard_error = (1 / (EXPERTS - 1) / LAYERS) ** 0.5
    followed_L = follow(shares_of(now_LTE, sham_LE), shares_of(now_LTE), shares_of(earlier_LTE))
    # Lifting anybody takes from the favourites first, so even a sham is a little in the needed direction on average.
    assert abs(knowledge(sham_LE, shares_of(now_LTE)).mean()) < 3 * standard_error
    assert followed_L.mean() < 0.35
    assert knowledge(sham_LE, shares_of(now_LTE)).std() > 0.2


def test_no_field_reads_zero() -> None:
    earlier_LTE, now_LTE = plant(3, taste=0.5)
    none_LE = torch.zeros(LAYERS, EXPERTS)
    assert not follow(shares_of(now_LTE), shares_of(now_LTE), shares_of(earlier_LTE)).any()
    assert not knowledge(none_LE, shares_of(now_LTE)).any()


def test_a_field_made_of_noise_is_not_praised_though_the_load_returns_to_its_mean() -> None:
    """The circular way, load change against the error it was measured from, reads 0.7 where nothing is steered."""
    earlier_LTE, now_LTE = plant(4, taste=0.0)  # balanced: every deviation is noise
    error_LE = 1.0 / EXPERTS - shares_of(earlier_LTE)
    circular_L = cosine_similarity(shares_of(now_LTE) - shares_of(earlier_LTE), error_LE, dim=-1)
    assert circular_L.mean() > 0.6
    assert abs(knowledge(error_LE, shares_of(now_LTE)).mean()) < 3 * (1 / (EXPERTS - 1) / LAYERS) ** 0.5
