"""The MoE layer against a loop over tokens, and what its reading counts.

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chronomoe.model.dispatch import order_by_expert
from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import ACTIVATIONS, FeedForward
from chronomoe.model.moe import MoELayer
from chronomoe.model.router import RouterOutput, TopKRouter, count_by_expert
from chronomoe.model.sensor import UNIT, read_layer

DIM, HIDDEN, E = 16, 24, 6


def make_layer(top_k: int = 2, actuation: str = "selection") -> MoELayer:
    torch.manual_seed(0)
    layer = MoELayer(TopKRouter(DIM, E, top_k, actuation), ExpertBank(E, DIM, HIDDEN))
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return layer


def make_tokens(num_tokens: int = 20) -> Tensor:
    return torch.randn(num_tokens, DIM, generator=torch.Generator().manual_seed(1))


FIELD = (torch.linspace(-1, 1, E), torch.linspace(0.3, -0.3, E))


def loop_over_tokens(layer: MoELayer, x_TD: Tensor, routing: RouterOutput) -> Tensor:
    """sum over e in S_t of w_te expert_e(x_t), one token and expert at a time."""
    y_TD = torch.zeros_like(x_TD)
    for token, (ids_K, weights_K) in enumerate(zip(routing.topk_expert_ids_TK, routing.topk_weights_TK, strict=True)):
        for expert, weight in zip(ids_K.tolist(), weights_K, strict=True):
            gate_F, up_F = (layer.experts.gate_up_EFD[expert] @ x_TD[token]).chunk(2)
            y_TD[token] += weight * (layer.experts.down_EDF[expert] @ (torch.nn.functional.silu(gate_F) * up_F))
    return y_TD


@pytest.mark.parametrize("top_k", [1, 2, 3, E])
@pytest.mark.parametrize("num_tokens", [1, 20])
def test_the_layer_equals_a_loop_over_tokens_in_values_and_gradients(num_tokens: int, top_k: int) -> None:
    layer = make_layer(top_k)
    x_TD = make_tokens(num_tokens).requires_grad_()
    y_TD, state = layer(x_TD, *FIELD)
    routing = state.routing
    reference_TD = loop_over_tokens(layer, x_TD, routing)
    torch.testing.assert_close(y_TD, reference_TD)
    direction_TD = torch.linspace(-1, 1, y_TD.numel()).view_as(y_TD)
    inputs = [x_TD, *layer.parameters()]
    ours = torch.autograd.grad((y_TD * direction_TD).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((reference_TD * direction_TD).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_the_layer_leaves_its_input_and_the_field_unchanged() -> None:
    x_TD = make_tokens()
    before = [tensor.clone() for tensor in (x_TD, *FIELD)]
    make_layer()(x_TD, *FIELD)
    for tensor, copy in zip((x_TD, *FIELD), before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("strided", ["input", "gradient"])
def test_any_stride_of_input_and_gradient_reads_the_same(strided: str) -> None:
    layer, dense_TD = make_layer(), make_tokens()
    x_TD = dense_TD.T.contiguous().T if strided == "input" else dense_TD
    direction_TD = torch.ones(1, 1).expand_as(x_TD) if strided == "gradient" else torch.ones_like(x_TD)
    readings = []
    for rows_TD, gradient_TD in ((dense_TD, torch.ones_like(dense_TD)), (x_TD, direction_TD)):
        y_TD, _ = layer(rows_TD, *FIELD)
        readings.append([y_TD, *torch.autograd.grad(y_TD, list(layer.parameters()), gradient_TD)])
    for ours, reference in zip(*readings, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
def test_renaming_the_experts_changes_no_output(actuation: str) -> None:
    layer, x_TD = make_layer(actuation=actuation), make_tokens()
    renamed = make_layer(actuation=actuation)
    order_E = torch.tensor([3, 5, 0, 1, 4, 2])
    with torch.no_grad():
        for weight in renamed.parameters():  # gate rows and both expert tensors have the experts first
            weight.copy_(weight[order_E])
    y_TD, state = layer(x_TD, *FIELD)
    renamed_TD, renamed_state = renamed(x_TD, *(values_E[order_E] for values_E in FIELD))
    assert torch.equal(order_E[renamed_state.routing.topk_expert_ids_TK], state.routing.topk_expert_ids_TK)
    torch.testing.assert_close(renamed_TD, y_TD)


def test_grouping_sorts_by_expert_and_keeps_the_tokens_order_within_one() -> None:
    ids_TK = torch.tensor([[2, 0], [0, 5], [2, 5], [5, 2]])
    order_N = order_by_expert(ids_TK)
    assert count_by_expert(ids_TK.flatten(), torch.ones(8, dtype=torch.int64), E).tolist() == [2, 0, 3, 0, 0, 3]
    expected = sorted(range(8), key=lambda n: (ids_TK.flatten()[n].item(), n))
    assert order_N.tolist() == expected


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "with padding"])
def test_a_reading_counts_assignments_and_gate_mass_of_real_tokens(padded: bool) -> None:
    real_T = torch.arange(20) % 3 != 0 if padded else None
    _, state = make_layer()(make_tokens(), *FIELD, real_T)
    routing = state.routing
    counts_E, mass_E, dropped_E = read_layer(state, []).unbind(dim=-1)
    expected_counts, expected_units = [0] * E, [0] * E
    for token in range(20):
        if real_T is not None and not real_T[token]:
            continue
        for expert, weight in zip(*(t[token].tolist() for t in routing[:2]), strict=True):
            expected_counts[expert] += 1
            expected_units[expert] += round(weight * UNIT)
    assert counts_E.tolist() == expected_counts
    assert mass_E.tolist() == expected_units
    assert counts_E.dtype == mass_E.dtype == torch.int64
    assert not dropped_E.any()


def test_a_reading_of_an_all_padding_batch_is_zero() -> None:
    _, state = make_layer()(make_tokens(), *FIELD, torch.zeros(20, dtype=torch.bool))
    assert not read_layer(state, []).any()


@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_shared_experts_add_to_the_output_and_to_nothing_that_is_counted(activation: str) -> None:
    torch.manual_seed(0)
    shared = FeedForward(DIM, 2 * HIDDEN, activation)
    plain, x_TD = make_layer(), make_tokens()
    layer = MoELayer(plain.router, plain.experts, shared_experts=shared)
    y_TD, state = layer(x_TD, *FIELD)
    routed_TD, plain_state = plain(x_TD, *FIELD)
    hidden_TF = x_TD @ shared.gate_up.weight.T
    hidden_TF = ACTIVATIONS[activation].join(hidden_TF)
    torch.testing.assert_close(y_TD, routed_TD + hidden_TF @ shared.down.weight.T)
    assert torch.equal(state.mixture_TD, plain_state.mixture_TD)
    assert torch.equal(read_layer(state, []), read_layer(plain_state, []))
