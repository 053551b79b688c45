"""Routing losses against sums written out in float64, and against what is known of them on paper.

Axes: T tokens, E experts, K experts per token, L MoE layers.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chronomoe.model.losses import gate_probabilities, load_balancing_loss, router_z_loss
from chronomoe.model.router import RouterOutput, TopKRouter

GATES = ["topk_softmax", "softmax", "sigmoid"]


def route(logits_TE: Tensor, top_k: int = 2, gate: str = "topk_softmax") -> RouterOutput:
    """A real router's decision on these logits (its gate is the identity)."""
    experts = logits_TE.shape[-1]
    router = TopKRouter(experts, experts, top_k, "selection", gate)
    router.gate.weight.data = torch.eye(experts)
    return router(logits_TE, torch.zeros(experts), torch.zeros(experts))


def draw(tokens: int = 30, experts: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=generator) + torch.randn(experts, generator=generator)


def switch_loss(probabilities_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """E sum_e f_e P_e, expert by expert, in float64."""
    tokens, experts = probabilities_TE.shape
    terms = [
        (ids_TK == e).sum().item() / ids_TK.numel() * probabilities_TE[:, e].sum() / tokens for e in range(experts)
    ]
    return experts * torch.stack(terms).sum()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_uniform_loads_or_uniform_probabilities_read_one(gate: str, top_k: int) -> None:
    uniform = load_balancing_loss([route(torch.zeros(12, 6), top_k, gate)], gate)
    assert uniform.item() == pytest.approx(1.0)
    routing = route(draw(), top_k, gate)
    fair = load_balancing_loss([routing], gate, counts_LE=torch.full((1, 6), 5))
    assert fair.item() == pytest.approx(1.0)


def test_one_is_not_the_least_it_can_read() -> None:
    probabilities_TE = torch.tensor([[0.51, 0.49]] * 3 + [[1e-12, 1.0]])
    assert load_balancing_loss([route(probabilities_TE.log(), 1)], "topk_softmax").item() == pytest.approx(0.8825)


def test_opposite_imbalances_of_two_layers_do_not_cancel() -> None:
    leaning_TE = torch.tensor([[4.0, 0.0]]).repeat(8, 1)
    pair = load_balancing_loss([route(leaning_TE, 1), route(-leaning_TE, 1)], "topk_softmax")
    alone = load_balancing_loss([route(leaning_TE, 1)], "topk_softmax")
    assert pair.item() == pytest.approx(alone.item())
    assert alone > 1.9


@pytest.mark.parametrize("gate", GATES)
def test_value_and_gradient_are_those_of_probabilities_alone(gate: str) -> None:
    logits_TE = draw().requires_grad_()
    routing = route(logits_TE, gate=gate)
    (gradient_TE,) = torch.autograd.grad(load_balancing_loss([routing], gate), logits_TE)
    exact_TE = logits_TE.detach().double().requires_grad_()
    probabilities_TE = (
        exact_TE.softmax(-1) if gate != "sigmoid" else exact_TE.sigmoid() / exact_TE.sigmoid().sum(-1, True)
    )
    expected = switch_loss(probabilities_TE, routing.topk_expert_ids_TK)
    (expected_TE,) = torch.autograd.grad(expected, exact_TE)
    torch.testing.assert_close(load_balancing_loss([routing], gate).double(), expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient_TE.double(), expected_TE, rtol=1e-4, atol=1e-8)
    assert gradient_TE.any()


def test_sigmoids_that_all_vanish_are_still_a_distribution() -> None:
    probabilities_TE = gate_probabilities(torch.tensor([[-200.0, -201.0], [-1e4, -1e4]]), "sigmoid")
    torch.testing.assert_close(probabilities_TE.sum(dim=-1), torch.ones(2))
    assert probabilities_TE[0, 0] > probabilities_TE[0, 1]


@pytest.mark.parametrize("experts", [8, 64])
def test_the_z_loss_reads_ln_e_squared_at_zero_logits(experts: int) -> None:
    assert router_z_loss([route(torch.zeros(5, experts))] * 2).item() == pytest.approx(math.log(experts) ** 2)


def test_the_z_loss_and_its_gradient_are_those_of_the_sum_written_out() -> None:
    logits_TE = draw().requires_grad_()
    loss = router_z_loss([route(logits_TE), route(2.0 * logits_TE)])
    exact_TE = logits_TE.detach().double().requires_grad_()
    squares = [(row.exp().sum().log() ** 2 + (2 * row).exp().sum().log() ** 2) / 2 for row in exact_TE]
    expected = torch.stack(squares).mean()
    torch.testing.assert_close(loss.double(), expected)
    (ours_TE,), (theirs_TE,) = torch.autograd.grad(loss, logits_TE), torch.autograd.grad(expected, exact_TE)
    torch.testing.assert_close(ours_TE.double(), theirs_TE, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", ["balancing", "z"])
def test_padding_counts_for_nothing_and_true_means_a_token(loss: str) -> None:
    def read(logits_TE: Tensor, real_T: Tensor | None) -> Tensor:
        routings = [route(logits_TE)]
        return (
            load_balancing_loss(routings, "softmax", real_T) if loss == "balancing" else router_z_loss(routings, real_T)
        )

    logits_TE, real_T = draw(), torch.arange(30) % 3 != 1
    whole_TE = logits_TE.clone().requires_grad_()
    masked = read(whole_TE, real_T)
    torch.testing.assert_close(masked, read(logits_TE[real_T], None))
    assert not torch.allclose(masked, read(logits_TE[~real_T], None))
    (gradient_TE,) = torch.autograd.grad(masked, whole_TE)
    assert gradient_TE[real_T].any(dim=-1).all()
    assert not gradient_TE[~real_T].any()
    assert read(logits_TE, torch.zeros(30, dtype=torch.bool)).item() == 0.0


def test_the_scopes_differ_by_the_covariance_of_loads_and_probabilities() -> None:
    """mean L_micro = L_global + E sum_e Cov(f_e, P_e): the micro-batch scope punishes a batch for its preferences."""
    batches = [route(draw(40, 6, seed=seed), gate="softmax") for seed in range(5)]
    counts_E = sum(routing.tokens_per_expert_E for routing in batches)
    assert isinstance(counts_E, Tensor)
    micro = sum(load_balancing_loss([r], "softmax") for r in batches) / 5
    globally = sum(load_balancing_loss([r], "softmax", counts_LE=counts_E[None]) for r in batches) / 5
    share_BE = torch.stack([r.tokens_per_expert_E / 80 for r in batches])
    mean_BE = torch.stack([r.logits_TE.softmax(dim=-1).mean(dim=0) for r in batches])
    covariance_E = (share_BE * mean_BE).mean(0) - share_BE.mean(0) * mean_BE.mean(0)
    torch.testing.assert_close(micro - globally, 6 * covariance_E.sum())
    assert covariance_E.sum() > 0.01
    whole = load_balancing_loss([route(torch.cat([r.logits_TE for r in batches]), gate="softmax")], "softmax")
    torch.testing.assert_close(globally, whole)
