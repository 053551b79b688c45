"""Specialisation: each number against its definition, and what it reads when there is none, all, or only words.

Axes: L layers (here also: independent runs), T tokens, K experts per token, R domains, E experts, B permutations.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics.documents import Documents, count_documents
from chronomoe.chrono.metrics.specialisation import (
    domain_information,
    domain_separation,
    domain_specialisation,
    domain_table,
    mutual_information,
    separation,
)

RUNS = 200
NOISE = 3 * math.sqrt(0.95 * 0.05 / RUNS)
"""Three standard deviations of the share of 200 runs that an exact 95% interval holds."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


tables = st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=3, max_size=3).filter(
    lambda rows: all(any(row) for row in rows)
)


@given(rows=tables)
def test_mutual_information_and_separation_equal_their_definitions(rows: list[list[int]]) -> None:
    total = sum(map(sum, rows))
    row_sums, column_sums = [sum(row) for row in rows], [sum(column) for column in zip(*rows, strict=True)]
    information = sum(
        rows[r][e] / total * math.log(rows[r][e] * total / (row_sums[r] * column_sums[e]))
        for r in range(3)
        for e in range(4)
        if rows[r][e]
    )
    assert mutual_information(torch.tensor(rows)).item() == pytest.approx(information, abs=1e-12)
    shares = [[rows[r][e] / row_sums[r] for r in range(3)] for e in range(4)]
    spread = sum(sum((p - sum(share) / 3) ** 2 for p in share) / 3 for share in shares)
    assert separation(torch.tensor(rows)).item() == pytest.approx(spread, abs=1e-12)
    specialisation_RE = domain_specialisation(torch.tensor(rows))
    for r in range(3):
        for e in range(4):
            if column_sums[e]:
                expected = rows[r][e] / row_sums[r] / (column_sums[e] / total)
                assert specialisation_RE[r, e].item() == pytest.approx(expected)
            else:
                assert specialisation_RE[r, e].isnan()


def test_an_imbalanced_router_without_taste_reads_one_for_every_domain_and_expert() -> None:
    table_RE = torch.tensor([[60, 30, 10], [6, 3, 1]])
    torch.testing.assert_close(domain_specialisation(table_RE), torch.ones(2, 3, dtype=torch.float64))
    assert mutual_information(table_RE) == pytest.approx(0, abs=1e-12)
    assert separation(table_RE) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("document_taste", [0.0, 1.0], ids=["token-independent router", "permuted document labels"])
def test_without_specialisation_95_percent_of_runs_stay_inside_the_null(
    corpus: Callable, route: Callable, document_taste: float
) -> None:
    text = corpus([8, 12, 6], 20)
    ids_LTK = route(text, runs=RUNS, document_taste=document_taste)
    documents = count_documents(ids_LTK, text.document_T, text.domain_T, 8)
    found = domain_information(documents, permutations=199, resamples=1000, generator=generator())
    split = domain_separation(documents, permutations=199, generator=generator())
    for null in (found.null, split.null):
        inside = ((null.p_value > 0.025) & (null.p_value <= 0.975)).double().mean().item()
        assert inside == pytest.approx(0.95, abs=NOISE)
        assert null.p_value.mean().item() == pytest.approx(0.5, abs=3 / math.sqrt(12 * RUNS))
    for value_L in (found.debiased, split.excess):
        assert abs(value_L.mean()) < 3 * value_L.std() / math.sqrt(RUNS)
    assert ((found.low < 0) & (found.high > 0)).double().mean() > 0.9
    assert (found.information > 0).all(), "the plug-in value is biased: that is why there is a null"


def test_dealing_labels_to_tokens_would_give_a_null_far_too_small(corpus: Callable, route: Callable) -> None:
    text = corpus([8, 12, 6], 60)
    ids_TK = route(text, document_taste=1.0)[0]
    found = domain_information(
        count_documents(ids_TK, text.document_T, text.domain_T, 8),
        permutations=199,
        resamples=1000,
        generator=generator(),
    )

    def shuffle_tokens(seed: int) -> Tensor:
        shuffled_T = text.domain_T[torch.randperm(len(text.domain_T), generator=generator(seed))]
        table_RE = torch.zeros(3, 8).index_put_(
            (shuffled_T[:, None].expand_as(ids_TK), ids_TK), torch.tensor(1.0), True
        )
        return mutual_information(table_RE)

    token_null_B = torch.stack([shuffle_tokens(seed) for seed in range(199)])
    assert found.null.mean > 8 * token_null_B.mean()
    assert (token_null_B < found.information).all(), "it would call every corpus of documents specialised"
    assert found.null.p_value > 0.05


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_planted_router_reads_one(corpus: Callable, top_k: int) -> None:
    text = corpus([9, 12, 6, 5], 10)
    ids_TK = text.domain_T[:, None] * top_k + torch.arange(top_k)
    documents = count_documents(ids_TK, text.document_T, text.domain_T, 4 * top_k)
    found = domain_information(documents, permutations=199, resamples=1000, generator=generator())
    assert found.debiased.item() == pytest.approx(1)
    assert found.low.item() == pytest.approx(1, abs=0.1)
    assert found.null.p_value == 1 / 200
    assert found.null.z > 10
    if top_k == 1:
        assert found.nmi.item() == pytest.approx(1)
    assert domain_separation(documents, permutations=199, generator=generator()).excess > 0.1


def test_the_reading_grows_with_the_taste_of_domains(corpus: Callable, route: Callable) -> None:
    text = corpus([10, 10, 10], 40)
    readings = []
    for taste in (0.0, 0.5, 1.0, 3.0):
        ids_LTK = route(text, runs=20, document_taste=0.3, domain_taste=taste)
        documents = count_documents(ids_LTK, text.document_T, text.domain_T, 8)
        found = domain_information(documents, permutations=199, resamples=1000, generator=generator())
        readings.append(found.debiased.mean().item())
        assert ((found.low < found.debiased) & (found.debiased < found.high)).double().mean() >= 0.9
    assert readings == sorted(readings)
    assert readings[0] == pytest.approx(0, abs=0.005)
    assert readings[-1] > 0.3


def test_the_interval_holds_what_an_endless_corpus_would_read(corpus: Callable, route: Callable) -> None:
    endless = corpus([3000, 3000], 20)
    truth = mutual_information(
        domain_table(count_documents(route_by_domain(endless.domain_T, 0), endless.document_T, endless.domain_T, 8))
    )
    text = corpus([30, 30], 20)
    ids_LTK = torch.stack([route_by_domain(text.domain_T, seed) for seed in range(1, 101)])
    documents = count_documents(ids_LTK, text.document_T, text.domain_T, 8)
    found = domain_information(documents, permutations=199, resamples=1000, generator=generator())
    most = math.log(2)  # two domains of equal size
    covered = (found.low * most < truth) & (truth < found.high * most)
    assert covered.double().mean() > 0.87


def route_by_domain(domain_T: Tensor, seed: int) -> Tensor:
    """One fixed taste of two domains, fresh tokens, int64 [T, 2]."""
    taste_RE = torch.randn(2, 8, generator=generator(7))
    return torch.multinomial(taste_RE.softmax(dim=-1)[domain_T], 2, generator=generator(seed))


def test_label_free_separation_of_independent_tokens_reads_its_formula() -> None:
    num_domains, tokens, top_k = 7, 1095, 2
    chosen = (
        torch.rand(300 * num_domains * tokens, 8, generator=generator()).topk(top_k).indices.view(-1, tokens * top_k)
    )
    table_LRE = torch.nn.functional.one_hot(chosen, 8).sum(dim=1).view(300, num_domains, 8)
    null = (num_domains - 1) / num_domains * (1 - top_k / 8) / (top_k * tokens)
    assert null == pytest.approx(2.93e-4, rel=0.005)
    values_L = separation(table_LRE)
    assert abs(values_L.mean() - null) < 3 * values_L.std() / math.sqrt(300)


def zipf_documents(seed: int, documents: int, tokens: int, vocab_size: int = 32) -> tuple[Tensor, Tensor]:
    """Token ids [documents, tokens] and domains: each of two domains has its own order of frequent words."""
    order_RV = torch.stack([torch.randperm(vocab_size, generator=generator(domain)) for domain in range(2)])
    domain_M = torch.arange(documents) % 2
    frequency_MV = torch.zeros(documents, vocab_size).scatter_(
        1, order_RV[domain_M], 1 / torch.arange(1.0, vocab_size + 1).expand(documents, -1)
    )
    return torch.multinomial(frequency_MV, tokens, replacement=True, generator=generator(seed)), domain_M


def test_an_untrained_model_on_text_reads_a_lexical_floor_and_not_zero(tiny_model: Callable) -> None:
    ids_BS, domain_M = zipf_documents(0, documents=40, tokens=32)
    with torch.no_grad():
        routings = tiny_model(num_experts=8)(ids_BS).routings
    ids_LTK = torch.stack([routing.topk_expert_ids_TK for routing in routings])
    document_T = torch.arange(40).repeat_interleave(32)
    floor = domain_information(
        count_documents(ids_LTK, document_T, domain_M[document_T], 8),
        permutations=199,
        resamples=1000,
        generator=generator(),
    )
    assert (floor.debiased > 0).all()
    assert (floor.low > 0).all()
    assert (floor.null.p_value == 1 / 200).all()
    shuffled_M = domain_M[torch.randperm(40, generator=generator(3))]
    control = domain_information(
        count_documents(ids_LTK, document_T, shuffled_M[document_T], 8),
        permutations=199,
        resamples=1000,
        generator=generator(),
    )
    assert (control.null.p_value > 0.05).all()


def test_layers_at_once_equal_layers_one_by_one(corpus: Callable, route: Callable) -> None:
    text = corpus([6, 5, 4], 10)
    documents = count_documents(route(text, runs=3, domain_taste=0.5), text.document_T, text.domain_T, 8)
    together = domain_information(documents, permutations=199, resamples=1000, generator=generator())
    for layer in range(3):
        alone = domain_information(
            documents._replace(counts_ME=documents.counts_ME[layer]),
            permutations=199,
            resamples=1000,
            generator=generator(),
        )
        for name in ("information", "nmi", "debiased", "low", "high"):
            torch.testing.assert_close(getattr(together, name)[layer], getattr(alone, name), msg=name)
        torch.testing.assert_close(together.null.z[layer], alone.null.z)


DEGENERATE = {
    "one domain": Documents(torch.randint(1, 9, (6, 4), generator=generator()), torch.zeros(6, dtype=torch.int64), 1),
    "one document a domain": Documents(torch.eye(3, dtype=torch.int64) * 5, torch.arange(3), 3),
    "one used expert": Documents(torch.tensor([[5, 0], [7, 0], [3, 0], [4, 0]]), torch.tensor([0, 0, 1, 1]), 2),
    "no tokens": Documents(torch.zeros(4, 2, dtype=torch.int64), torch.tensor([0, 0, 1, 1]), 2),
}


@pytest.mark.parametrize("documents", DEGENERATE.values(), ids=DEGENERATE.keys())
def test_without_a_baseline_the_reading_is_not_a_number_and_never_infinite(documents: Documents) -> None:
    found = domain_information(documents, permutations=199, resamples=1000, generator=generator())
    assert found.debiased.isnan()
    assert found.low.isnan()
    assert found.high.isnan()
    assert found.null.z.isnan()
    assert not found.null.p_value < 0.05
    split = domain_separation(documents, permutations=199, generator=generator())
    assert not any(value.isinf() for value in (*found[:5], *found.null, split.value, split.excess, *split.null))


def test_a_domain_without_documents_changes_no_reading(corpus: Callable, route: Callable) -> None:
    text = corpus([6, 5], 10)
    ids_TK = route(text, domain_taste=1.0)[0]
    full = count_documents(ids_TK, text.document_T, text.domain_T, 8)
    gap = count_documents(ids_TK, text.document_T, text.domain_T * 2, 8)
    assert gap.num_domains == 3
    for read in (mutual_information, separation):
        torch.testing.assert_close(read(domain_table(gap)), read(domain_table(full)))
    found = [
        domain_information(documents, permutations=199, resamples=1000, generator=generator())
        for documents in (full, gap)
    ]
    torch.testing.assert_close(found[0].debiased, found[1].debiased)
    assert domain_specialisation(domain_table(gap))[1].isnan().all()
