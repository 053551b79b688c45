"""How families choose and weigh experts, against loops over tokens.

Axes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.router import TopKRouter
from chronomoe.pretrained.rules import Groups, Rule, choose, limit, weigh

RULES = {
    "mixtral": Rule(2, "topk_softmax", True),
    "olmoe": Rule(3, "softmax", False),
    "deepseek_v2": Rule(2, "softmax", False, 1.7, Groups(4, 2, best=1)),
    "deepseek_v3": Rule(2, "sigmoid", True, 2.5, Groups(4, 2, best=2)),
    "switch": Rule(1, "softmax", False),
}
NUM_EXPERTS = 8


def drawn(num_tokens: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, NUM_EXPERTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(rule: Rule, logits_E: Tensor, bias_E: Tensor, correction_E: Tensor, steer: bool) -> tuple[set[int], dict]:
    steered_E = logits_E + bias_E if steer else logits_E
    if rule.gate == "sigmoid":
        scores = [1 / (1 + (-z).exp().item()) for z in steered_E]
        ranked = [s + c for s, c in zip(scores, correction_E.tolist(), strict=True)]
    else:
        total = sum(z.exp().item() for z in steered_E)
        scores = [z.exp().item() / total for z in steered_E]
        ranked = steered_E.tolist() if rule.gate == "topk_softmax" or steer else list(scores)
    if not steer:
        ranked = [r + b for r, b in zip(ranked, bias_E.tolist(), strict=True)]
    allowed = set(range(len(ranked)))
    if rule.groups is not None:
        size = len(ranked) // rule.groups.number
        groups = [range(start, start + size) for start in range(0, len(ranked), size)]
        best = rule.groups.best
        worth = [sum(sorted((ranked[e] for e in group), reverse=True)[:best]) for group in groups]
        kept = sorted(range(len(groups)), key=lambda g: -worth[g])[: rule.groups.kept]
        allowed = {e for g in kept for e in groups[g]}
    chosen = sorted(allowed, key=lambda e: -ranked[e])[: rule.top_k]
    total = sum(scores[e] for e in chosen) if rule.renormalised else 1.0
    return set(chosen), {e: rule.scale * scores[e] / total for e in chosen}


@pytest.mark.parametrize("steer", [False, True], ids=["selection", "logits"])
@pytest.mark.parametrize("name", RULES)
def test_choice_and_weights_equal_a_loop_over_tokens(name: str, steer: bool) -> None:
    rule, logits_TE = RULES[name], drawn()
    bias_E, correction_E = 0.3 * drawn(1, seed=1)[0], 0.2 * drawn(1, seed=2)[0]
    correction_E = correction_E if rule.gate == "sigmoid" else torch.zeros_like(correction_E)
    choice = choose(rule, logits_TE, bias_E, None, correction_E=correction_E, steer_weights=steer)
    for ids_K, weights_K, logits_E in zip(choice.topk_expert_ids_TK, choice.topk_weights_TK, logits_TE, strict=True):
        chosen, weights = by_hand(rule, logits_E, bias_E, correction_E, steer)
        assert set(ids_K.tolist()) == chosen
        for expert, weight in zip(ids_K.tolist(), weights_K.tolist(), strict=True):
            assert weight == pytest.approx(weights[expert], rel=1e-12)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@pytest.mark.parametrize(
    ("rule", "gate"),
    [
        (Rule(2, "topk_softmax", True), "topk_softmax"),
        (Rule(2, "softmax", False), "softmax"),
        (Rule(2, "sigmoid", True), "sigmoid"),
    ],
    ids=["topk_softmax", "softmax", "sigmoid"],
)
def test_a_field_does_what_it_does_to_our_own_router_of_that_gate(rule: Rule, gate: str, actuation: str) -> None:
    router = TopKRouter(NUM_EXPERTS, NUM_EXPERTS, 2, actuation, gate).double()
    torch.nn.init.eye_(router.gate.weight)
    logits_TE, bias_E, heat_E = drawn(), 0.2 * drawn(1, seed=1)[0], 0.3 * drawn(1, seed=2)[0]
    ours = router(logits_TE, bias_E, heat_E)
    theirs = choose(rule, logits_TE, bias_E, heat_E, steer_weights=actuation == "logits")
    assert torch.equal(theirs.topk_expert_ids_TK, ours.topk_expert_ids_TK)
    torch.testing.assert_close(theirs.topk_weights_TK, ours.topk_weights_TK, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(theirs.scores_TE, ours.scores_TE)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1.0, 10.0, 1e4]))
def test_no_bias_reaches_an_expert_outside_the_kept_groups(seed: int, size: float) -> None:
    logits_TE, bias_E = drawn(20, seed), size * drawn(1, seed + 1)[0]
    for name in ("deepseek_v2", "deepseek_v3"):
        rule = RULES[name]
        ids_TK = choose(rule, logits_TE, bias_E, None).topk_expert_ids_TK
        assert rule.groups is not None
        for ids_K in ids_TK:
            assert len({int(e) // 2 for e in ids_K}) <= rule.groups.kept


def test_a_limit_keeps_just_the_best_groups() -> None:
    ranked_TE = torch.tensor([[0.9, 0.0, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1]])
    by_one, by_two = (limit(ranked_TE, Groups(4, 1, best)).isfinite().nonzero()[:, 1].tolist() for best in (1, 2))
    assert by_one == [0, 1]
    assert by_two == [2, 3]


@pytest.mark.parametrize("name", RULES)
def test_under_selection_a_field_that_moves_no_choice_changes_no_bit_of_the_weights(name: str) -> None:
    rule, logits_TE = RULES[name], drawn().float()
    plain = choose(rule, logits_TE, torch.zeros(NUM_EXPERTS), None)
    moved = choose(rule, logits_TE, torch.full((NUM_EXPERTS,), 0.5), None)
    assert torch.equal(plain.topk_expert_ids_TK, moved.topk_expert_ids_TK)
    assert torch.equal(plain.topk_weights_TK, moved.topk_weights_TK)


@pytest.mark.parametrize("name", RULES)
def test_weights_have_the_gradient_of_finite_differences(name: str) -> None:
    logits_TE = drawn(5).requires_grad_()
    ids_TK = choose(RULES[name], logits_TE, torch.zeros(NUM_EXPERTS), None).topk_expert_ids_TK
    assert torch.autograd.gradcheck(lambda z: weigh(RULES[name], z, ids_TK), logits_TE)


def test_a_solver_ranks_in_the_place_of_scores_and_groups_still_hold() -> None:
    logits_TE, calls = drawn(), []

    def solver(*asked: object) -> tuple[Tensor, Tensor]:
        calls.append(asked)
        return torch.arange(NUM_EXPERTS).double().expand(len(logits_TE), -1), torch.ones(NUM_EXPERTS)

    choice = choose(RULES["deepseek_v3"], logits_TE, torch.zeros(NUM_EXPERTS), None, balancer=solver)
    assert len(calls) == 1
    assert choice.topk_expert_ids_TK.tolist() == [[7, 6]] * len(logits_TE)
    assert choice.price_E is not None


def test_all_pairs_of_experts_can_be_asked_for() -> None:
    for pair in itertools.combinations(range(NUM_EXPERTS), 2):
        bias_E = torch.zeros(NUM_EXPERTS, dtype=torch.float64)
        bias_E[list(pair)] = 1e3
        ids_TK = choose(RULES["mixtral"], drawn(), bias_E, None).topk_expert_ids_TK
        assert all(set(ids_K.tolist()) == set(pair) for ids_K in ids_TK)
