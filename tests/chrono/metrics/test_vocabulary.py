"""Vocabulary specialisation against counting by hand, and its chance level against the exact maximum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.metrics.vocabulary import count_vocabulary, expected_maximum, vocabulary_specialisation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_text(tokens: int, vocab_size: int = 50) -> Tensor:
    return torch.multinomial(1 / torch.arange(1.0, vocab_size + 1), tokens, replacement=True, generator=generator())


def test_the_table_counts_each_tokens_first_expert_and_leaves_padding_out() -> None:
    first_LT = torch.tensor([[0, 1, 1, 0], [2, 2, 2, 2]])
    ids_T = torch.tensor([3, 3, 3, 1])
    table_LVE = count_vocabulary(first_LT, ids_T, 5, 3)
    assert table_LVE[0, 3].tolist() == [1, 2, 0]
    assert table_LVE[0, 1].tolist() == [1, 0, 0]
    assert table_LVE[1, 3].tolist() == [0, 0, 3]
    assert table_LVE.sum(dim=(1, 2)).tolist() == [4, 4]
    assert count_vocabulary(first_LT, ids_T, 5, 3, torch.tensor([True, False, True, True]))[0, 3].tolist() == [1, 1, 0]


def exact_expected_maximum(draws: int, share_E: list[float]) -> float:
    """By listing every outcome."""
    total = 0.0
    for outcome in itertools.product(range(len(share_E)), repeat=draws):
        total += math.prod(share_E[e] for e in outcome) * max(map(outcome.count, range(len(share_E))))
    return total / draws


@pytest.mark.parametrize("share", [[0.25] * 4, [0.6, 0.3, 0.1, 0.0], [0.0, 0.0, 1.0, 0.0]], ids=str)
@pytest.mark.parametrize("draws", [1, 2, 6])
def test_the_chance_level_is_the_expected_maximum_of_a_multinomial(draws: int, share: list[float]) -> None:
    draws_X = torch.full((300,), float(draws), dtype=torch.float64)
    simulated = expected_maximum(draws_X, torch.tensor(share, dtype=torch.float64), generator()).item()
    assert simulated == pytest.approx(exact_expected_maximum(draws, share), abs=0.006)


def test_a_router_that_ignores_the_token_reads_chance_and_one_that_obeys_it_reads_one() -> None:
    ids_T = draw_text(3000)
    # 40 independent runs as layers; expert 0 is three times as popular
    first_LT = torch.multinomial(
        torch.tensor([3.0, 1, 1, 1, 1, 1]), 40 * 3000, replacement=True, generator=generator(1)
    )
    ignoring = vocabulary_specialisation(count_vocabulary(first_LT.view(40, 3000), ids_T, 50, 6), generator=generator())
    assert abs(ignoring.corrected.mean()) < 3 * ignoring.corrected.std() / math.sqrt(40)
    assert (ignoring.value > 0.33).all(), "twice 1/6 without any specialisation"
    obeying = vocabulary_specialisation(count_vocabulary(ids_T % 6, ids_T, 50, 6), generator=generator())
    assert obeying.value == 1
    assert obeying.corrected == 1
    assert obeying.chance < 0.6


def test_only_ids_seen_often_enough_count_each_alike() -> None:
    ids_T = torch.tensor([0] * 8 + [1] * 16 + [2] * 7)
    first_T = torch.tensor([0] * 6 + [1] * 2 + [0] * 8 + [1] * 8 + [0] * 7)
    found = vocabulary_specialisation(count_vocabulary(first_T, ids_T, 4, 2), generator=generator())
    assert found.token_ids == 2
    assert found.value == (6 / 8 + 8 / 16) / 2


def test_an_untrained_model_reads_above_chance_most_of_all_in_its_first_layer(tiny_model: Callable) -> None:
    ids_T = draw_text(40 * 32, vocab_size=32)
    with torch.no_grad():
        routings = tiny_model(num_experts=8)(ids_T.view(40, 32)).routings
    first_LT = torch.stack([routing.topk_expert_ids_TK[:, 0] for routing in routings])
    found = vocabulary_specialisation(count_vocabulary(first_LT, ids_T, 32, 8), generator=generator())
    assert (found.corrected > 0.1).all()
    assert found.corrected[0] > found.corrected[1]


def test_without_a_baseline_the_reading_is_not_a_number() -> None:
    rare = vocabulary_specialisation(torch.ones(3, 2, dtype=torch.int64), generator=generator())
    assert rare.token_ids == 0
    assert rare.value.isnan()
    assert rare.corrected.isnan()
    one_expert = vocabulary_specialisation(torch.tensor([[20, 0], [30, 0]]), generator=generator())
    assert one_expert.value == 1
    assert one_expert.corrected.isnan()
