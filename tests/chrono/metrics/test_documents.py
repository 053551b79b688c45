"""Documents stay whole: counts against plain Python, what a permutation and a resample keep, and the null they give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.metrics.documents import (
    Documents,
    compare_with_null,
    count_documents,
    deal_labels,
    resample_documents,
)
from chronomoe.chrono.metrics.specialisation import domain_table
from chronomoe.settings import InputError


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_counts_equal_plain_python_and_leave_padding_out(corpus: Callable, route: Callable) -> None:
    text = corpus([3, 2], 7)
    ids_LTK = route(text, runs=2, document_taste=2.0)
    real_T = torch.rand(35, generator=torch.Generator().manual_seed(1)) < 0.7
    documents = count_documents(ids_LTK, text.document_T * 10 + 3, text.domain_T, 8, real_T=real_T)
    expected = torch.zeros(2, 5, 8, dtype=torch.int64)
    for layer in range(2):
        for token in real_T.nonzero().flatten().tolist():
            for expert in ids_LTK[layer, token].tolist():
                expected[layer, text.document_T[token], expert] += 1
    assert torch.equal(documents.counts_ME, expected)
    assert torch.equal(documents.domain_M, text.domain_T[::7])
    assert documents.num_domains == 2


def test_a_candidate_that_was_never_assigned_counts_in_no_document() -> None:
    ids_TK = torch.tensor([[0, 1], [1, 0], [1, 0]])
    assigned_TK = torch.tensor([[True, False], [True, True], [False, False]])
    labels_T = torch.tensor([0, 1, 1])
    documents = count_documents(ids_TK, labels_T, labels_T, 2, num_domains=5, assigned_TK=assigned_TK)
    assert documents.counts_ME.tolist() == [[1, 0], [1, 1]]
    assert documents.num_domains == 5
    assert domain_table(documents).tolist() == [[1, 0], [1, 1], [0, 0], [0, 0], [0, 0]]


def test_a_document_of_two_domains_is_refused() -> None:
    ids_TK = torch.zeros(4, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="two domains"):
        count_documents(ids_TK, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 8)


def fingerprinted(sizes: list[int]) -> Documents:
    """Document m has 2^m tokens, all for expert 0: a sum says which documents were added, and how often."""
    domain_M = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    counts_ME = torch.zeros(len(domain_M), 2, dtype=torch.int64)
    counts_ME[:, 0] = 2 ** torch.arange(len(domain_M))
    return Documents(counts_ME, domain_M, len(sizes))


def test_dealing_labels_keeps_documents_whole_and_how_many_each_domain_has(generator: torch.Generator) -> None:
    tables_BRE = deal_labels(fingerprinted([1, 2, 3]), 199, generator)
    assert tables_BRE.shape == (199, 3, 2)
    for sums_R in tables_BRE[:, :, 0].long().tolist():
        assert [bin(total).count("1") for total in sums_R] == [1, 2, 3]
        assert sum(sums_R) == 2**6 - 1
    first_domain_B = tables_BRE[:, 0, 0].long().bincount(minlength=33)
    assert first_domain_B[[1, 2, 4, 8, 16, 32]].min() > 199 / 6 * 0.6, "some document is never dealt this label"


def test_a_resample_draws_each_domains_own_documents_with_replacement(generator: torch.Generator) -> None:
    tables_BRE = resample_documents(fingerprinted([2, 1]), 1000, generator)
    first_domain_B = tables_BRE[:, 0, 0].long()
    # documents 1 and 2 of domain 0: both the first, one each, both the second
    assert set(first_domain_B.tolist()) == {2, 3, 4}
    assert (first_domain_B == 3).double().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (tables_BRE[:, 1, 0] == 4).all()


def test_resamples_vary_as_fresh_corpora_do(corpus: Callable, route: Callable, generator: torch.Generator) -> None:
    text = corpus([30, 30], 20)
    documents = count_documents(route(text, runs=100, document_taste=1.0), text.document_T, text.domain_T, 8)
    fresh_sd = domain_table(documents)[:, 0, 0].std()
    resampled_sd = resample_documents(documents, 1000, generator)[..., 0, 0].std(dim=-1).mean()
    assert resampled_sd.item() == pytest.approx(fresh_sd.item(), rel=0.2)


def test_layers_share_their_draws_so_that_all_at_once_equals_one_by_one(corpus: Callable, route: Callable) -> None:
    text = corpus([4, 5], 6)
    documents = count_documents(route(text, runs=3), text.document_T, text.domain_T, 8)
    for draw, amount in ((deal_labels, 199), (resample_documents, 1000)):
        together = draw(documents, amount, torch.Generator().manual_seed(5))
        for layer in range(3):
            alone = documents._replace(counts_ME=documents.counts_ME[layer])
            assert torch.equal(together[layer], draw(alone, amount, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    ("draw", "amount", "name"), [(deal_labels, 198, "permutations"), (resample_documents, 999, "resamples")]
)
def test_too_few_draws_are_refused(draw: Callable, amount: int, name: str, generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=f"{name}={amount}"):
        draw(fingerprinted([2, 2]), amount, generator)


def value(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def test_the_p_value_counts_the_observation_itself_and_ties() -> None:
    permuted_B = torch.arange(199, dtype=torch.float64)
    assert compare_with_null(value(1e9), permuted_B).p_value == 1 / 200
    assert compare_with_null(value(198.0), permuted_B).p_value == 2 / 200
    assert compare_with_null(value(-1.0), permuted_B).p_value == 1
    null = compare_with_null(value(150.0), permuted_B)
    assert null.z.item() == pytest.approx((150 - 99) / permuted_B.std().item())


def test_a_null_that_does_not_vary_gives_no_z() -> None:
    null = compare_with_null(value(0.5), torch.full((199,), 0.5, dtype=torch.float64))
    assert null.z.isnan()
    assert null.p_value == 1
    rounding = compare_with_null(value(3e-16), 1e-17 * torch.arange(199, dtype=torch.float64))
    assert rounding.z.isnan()
    assert rounding.p_value == 1
    assert compare_with_null(value(float("nan")), torch.zeros(199, dtype=torch.float64)).p_value.isnan()
