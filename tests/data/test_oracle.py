from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from chronomoe.data.oracle import oracle_expert_ids, random_expert_ids


def labels(num_tokens: int, num_domains: int) -> torch.Tensor:
    """Equally frequent domains in random order."""
    return (torch.arange(num_tokens) % num_domains)[torch.randperm(num_tokens, generator=torch.Generator())]


def table_of(ids_TK: torch.Tensor, domains_T: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Picks by domain and expert, counted one by one."""
    table = torch.zeros(int(domains_T.max()) + 1, num_experts, dtype=torch.float64)
    for domain, experts in zip(domains_T.tolist(), ids_TK.tolist(), strict=True):
        for expert in experts:
            table[domain, expert] += 1
    return table


def information(table: torch.Tensor) -> float:
    """I(domain; expert) in nats, each pick alike."""
    joint = table / table.sum()
    outer = joint.sum(1, keepdim=True) * joint.sum(0)
    return float(torch.xlogy(joint, joint / outer.clamp(min=1e-300)).sum())


@pytest.mark.parametrize(("experts", "top_k", "domains"), [(8, 2, 4), (8, 1, 4), (16, 2, 4), (4, 1, 4), (64, 8, 8)])
def test_with_room_for_every_domain_the_oracle_is_balanced_and_tells_the_domain(experts, top_k, domains):
    domains_T = labels(32 * experts, domains)
    table = table_of(oracle_expert_ids(domains_T, experts, top_k, domains), domains_T, experts)
    assert table.sum(0).tolist() == [32 * top_k] * experts
    assert ((table > 0).sum(0) == 1).all()
    assert information(table) == pytest.approx(math.log(domains))


def test_without_room_domains_share_groups_of_top_k_experts():
    domains_T = labels(640, 8)
    table = table_of(oracle_expert_ids(domains_T, 4, 2, 8), domains_T, 4)
    assert table.sum(0).tolist() == [320] * 4
    assert information(table) == pytest.approx(math.log(2))


def test_a_domain_absent_from_the_tokens_keeps_its_experts():
    ids = oracle_expert_ids(torch.tensor([3, 3, 1]), 8, 2, 4)
    assert ids.tolist() == [[3, 7], [3, 7], [1, 5]]


@given(experts=st.integers(1, 20), top_k=st.integers(1, 6), domains=st.integers(2, 12), seed=st.integers(0, 99))
def test_oracle_picks_are_distinct_experts_of_the_domains_group_in_even_turns(experts, top_k, domains, seed):
    assume(top_k <= experts)
    domains_T = torch.randint(domains, (97,), generator=torch.Generator().manual_seed(seed))
    ids_TK = oracle_expert_ids(domains_T, experts, top_k, domains)
    assert ids_TK.dtype == torch.int64
    assert ids_TK.shape == (97, top_k)
    assert int(ids_TK.min()) >= 0
    assert int(ids_TK.max()) < experts
    assert all(len(set(picks)) == top_k for picks in ids_TK.tolist())
    num_groups = min(domains, experts // top_k)
    assert (ids_TK % num_groups == (domains_T % num_groups)[:, None]).all()
    loads = torch.bincount(ids_TK.flatten(), minlength=experts)
    for group in range(num_groups):
        assert int(loads[group::num_groups].max() - loads[group::num_groups].min()) <= 1


def test_random_picks_are_every_set_of_experts_alike_and_say_nothing_of_the_domain():
    ids_TK = random_expert_ids(6000, 4, 2, seed=0)
    assert ids_TK.dtype == torch.int64
    sets = [tuple(sorted(picks)) for picks in ids_TK.tolist()]
    assert set(sets) == set(itertools.combinations(range(4), 2))
    assert max(abs(sets.count(found) - 1000) for found in set(sets)) < 5 * math.sqrt(1000)
    domains_T = labels(6000, 4)
    bias = 3 * 3 / (2 * 6000)  # of the plug-in estimate, (D - 1)(E - 1)/(2 N)
    assert information(table_of(ids_TK, domains_T, 4)) < 3 * bias


def test_random_picks_are_a_function_of_the_seed():
    assert torch.equal(random_expert_ids(50, 8, 2, seed=3), random_expert_ids(50, 8, 2, seed=3))
    assert not torch.equal(random_expert_ids(50, 8, 2, seed=3), random_expert_ids(50, 8, 2, seed=4))
