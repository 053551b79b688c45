"""Made-up corpora and routers of known specialisation.

Axes: L layers (here: independent runs), T tokens, K experts per token, M documents, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Corpus(NamedTuple):
    document_T: Tensor
    domain_T: Tensor


@pytest.fixture(scope="session")
def corpus() -> Callable[..., Corpus]:
    """corpus(sizes, tokens): sizes[r] documents of domain r, each of so many tokens; domains do not lie in order."""

    def make(sizes: list[int], tokens: int) -> Corpus:
        domain_M = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        domain_M = domain_M[torch.randperm(len(domain_M), generator=torch.Generator().manual_seed(0))]
        document_T = torch.arange(len(domain_M)).repeat_interleave(tokens)
        return Corpus(document_T, domain_M[document_T])

    return make


@pytest.fixture(scope="session")
def route() -> Callable[..., Tensor]:
    """route(corpus, runs, document_taste, domain_taste): random top-2 of 8, int64 [runs, T, 2].

    A taste is the standard deviation of a preference that all tokens of a document, or of a domain, share.
    """

    def make(
        corpus: Corpus, *, runs: int = 1, document_taste: float = 0.0, domain_taste: float = 0.0, seed: int = 0
    ) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        num_documents, num_domains = int(corpus.document_T.max()) + 1, int(corpus.domain_T.max()) + 1
        documents_LME = document_taste * torch.randn(runs, num_documents, 8, generator=generator)
        domains_LRE = domain_taste * torch.randn(runs, num_domains, 8, generator=generator)
        logits_LTE = documents_LME[:, corpus.document_T] + domains_LRE[:, corpus.domain_T]
        noise_LTE = torch.rand(logits_LTE.shape, generator=generator).log().neg().log().neg()
        return (logits_LTE + noise_LTE).topk(2).indices

    return make
