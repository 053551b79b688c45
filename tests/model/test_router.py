"""The router against its equations: arbitrary logits are fed through a gate that passes its input on unchanged.

Axes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.router import RouterOutput, TopKRouter, heat, mixing_weights, score, select_largest

E = 6
finite = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30]), st.floats(-50, 50, width=32))
tokens = st.lists(st.lists(finite, min_size=E, max_size=E), min_size=1, max_size=5)
ordinary = st.floats(-8, 8, width=32)
mild = st.floats(-1, 1, width=32)
experts = st.lists(ordinary, min_size=E, max_size=E)
GATES = ["topk_softmax", "softmax", "sigmoid"]


class Oracle(NamedTuple):
    ranked: list[float]
    weighed: list[float]


def route(
    logits_TE: Tensor,
    bias_E: Tensor | None = None,
    log_temperature_E: Tensor | None = None,
    *,
    top_k: int = 2,
    actuation: str = "selection",
    gate: str = "topk_softmax",
) -> RouterOutput:
    """Route tokens whose clean logits are given."""
    num_experts = logits_TE.shape[-1]
    router = TopKRouter(num_experts, num_experts, top_k, actuation, gate)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(num_experts))
    zeros_E = torch.zeros(num_experts)
    return router(
        logits_TE,
        zeros_E if bias_E is None else bias_E,
        zeros_E if log_temperature_E is None else log_temperature_E,
    )


def random_logits(num_tokens: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed))


def selected(routing: RouterOutput, num_experts: int = E) -> Tensor:
    """Which experts each token goes to, bool [T, E], whatever their order."""
    return torch.zeros(len(routing.logits_TE), num_experts, dtype=torch.bool).scatter_(
        1, routing.topk_expert_ids_TK, True
    )


def test_a_token_goes_to_its_largest_logits_weighted_by_their_softmax() -> None:
    logits_TE = torch.tensor([[0.0, 3.0, 1.0, -2.0, 2.0, 0.5]])
    routing = route(logits_TE, top_k=3)
    assert routing.topk_expert_ids_TK.tolist() == [[1, 4, 2]]
    mass = [math.exp(3.0), math.exp(2.0), math.exp(1.0)]
    torch.testing.assert_close(routing.topk_weights_TK, torch.tensor([[m / sum(mass) for m in mass]]))
    assert torch.equal(routing.logits_TE, logits_TE)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@given(
    rows=tokens, bias=experts, log_temperature=st.lists(st.floats(-2, 2), min_size=E, max_size=E), k=st.integers(1, E)
)
def test_weights_of_distinct_experts_sum_to_one_or_to_their_probability(
    actuation: str, gate: str, rows: list[list[float]], bias: list[float], log_temperature: list[float], k: int
) -> None:
    field = torch.tensor(bias), torch.tensor(log_temperature)
    routing = route(torch.tensor(rows), *field, top_k=k, actuation=actuation, gate=gate)
    assert torch.isfinite(routing.topk_weights_TK).all()
    assert (routing.topk_weights_TK >= 0).all()
    mass_T = routing.topk_weights_TK.sum(-1)
    if gate == "softmax":
        assert (mass_T <= 1 + 1e-6).all()
    if gate != "softmax" or k == E:
        torch.testing.assert_close(mass_T, torch.ones(len(rows)))
    assert (selected(routing).sum(-1) == k).all()


def in_float64(row: list[float], bias: list[float], log_temperature: list[float], gate: str, actuation: str) -> Oracle:
    """The module's equations for one token, in plain double precision."""
    mean = sum(row) / E
    heated = [z + (z - mean) * math.expm1(-t) for z, t in zip(row, log_temperature, strict=True)]
    steered = [z + b for z, b in zip(heated, bias, strict=True)]

    def scores(logits: list[float]) -> list[float]:
        if gate == "sigmoid":
            return [1 / (1 + math.exp(-z)) for z in logits]
        powers = [math.exp(z) for z in logits]
        return [p / sum(powers) for p in powers] if gate == "softmax" else logits

    if actuation == "logits":
        return Oracle(scores(steered), scores(steered))
    return Oracle([s + b for s, b in zip(scores(heated), bias, strict=True)], scores(row))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@given(row=experts, bias=experts, log_temperature=st.lists(mild, min_size=E, max_size=E), k=st.integers(1, E))
def test_selection_and_weights_follow_the_equations(
    actuation: str, gate: str, row: list[float], bias: list[float], log_temperature: list[float], k: int
) -> None:
    field = torch.tensor(bias), torch.tensor(log_temperature)
    routing = route(torch.tensor([row]), *field, top_k=k, actuation=actuation, gate=gate)
    chosen = routing.topk_expert_ids_TK[0].tolist()
    oracle = in_float64(row, bias, log_temperature, gate, actuation)
    assert min(oracle.ranked[e] for e in chosen) >= sorted(oracle.ranked)[-k] - 1e-4
    values = [math.exp(oracle.weighed[e]) if gate == "topk_softmax" else oracle.weighed[e] for e in chosen]
    expected = values if gate == "softmax" else [v / sum(values) for v in values]
    torch.testing.assert_close(routing.topk_weights_TK[0], torch.tensor(expected), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@given(rows=tokens)
def test_a_neutral_field_is_the_router_without_one_bit_for_bit(
    actuation: str, gate: str, rows: list[list[float]]
) -> None:
    logits_TE = torch.tensor(rows)
    routing = route(logits_TE, actuation=actuation, gate=gate)
    ranked_TE = logits_TE if actuation == "logits" else score(logits_TE, gate)
    ids_TK = select_largest(ranked_TE, 2)
    assert torch.equal(routing.topk_expert_ids_TK, ids_TK)
    assert torch.equal(routing.topk_weights_TK, mixing_weights(logits_TE, ids_TK, gate))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@given(rows=tokens, masked=st.integers(0, E - 1), k=st.integers(1, E - 1))
def test_an_expert_with_a_bias_of_minus_infinity_is_never_chosen(
    actuation: str, gate: str, rows: list[list[float]], masked: int, k: int
) -> None:
    bias_E = torch.zeros(E)
    bias_E[masked] = float("-inf")
    routing = route(torch.tensor(rows), bias_E, top_k=k, actuation=actuation, gate=gate)
    assert not (routing.topk_expert_ids_TK == masked).any()
    assert torch.isfinite(routing.topk_weights_TK).all()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@given(order=st.permutations(range(E)), seed=st.integers(0, 99))
def test_renaming_the_experts_renames_the_choice(actuation: str, gate: str, order: list[int], seed: int) -> None:
    logits_TE, order_E = random_logits(seed=seed), torch.tensor(order)
    field = torch.linspace(-1, 1, E), torch.linspace(0.3, -0.3, E)
    plain = route(logits_TE, *field, actuation=actuation, gate=gate)
    renamed = route(logits_TE[:, order_E], *(f[order_E] for f in field), actuation=actuation, gate=gate)
    assert torch.equal(order_E[renamed.topk_expert_ids_TK], plain.topk_expert_ids_TK)
    torch.testing.assert_close(renamed.topk_weights_TK, plain.topk_weights_TK)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
def test_a_field_changes_the_selection_and_a_neutral_one_brings_it_back(actuation: str) -> None:
    logits_TE = random_logits()
    plain = route(logits_TE, actuation=actuation)
    steered = route(logits_TE, torch.linspace(-2, 2, E), torch.linspace(0.5, -0.5, E), actuation=actuation)
    restored = route(logits_TE, actuation=actuation)
    assert not torch.equal(selected(steered), selected(plain))
    assert torch.equal(steered.logits_TE, plain.logits_TE)
    for before, after in zip(plain, restored, strict=True):
        assert before is after is None or torch.equal(before, after)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
def test_only_the_logits_actuation_moves_the_weights_of_an_unchanged_selection(actuation: str, gate: str) -> None:
    logits_TE = random_logits()
    small = 0.2 if actuation == "logits" else 0.05
    plain = route(logits_TE, actuation=actuation, gate=gate)
    field = small * torch.linspace(-1, 1, E), 0.1 * torch.linspace(1, -1, E)
    steered = route(logits_TE, *field, actuation=actuation, gate=gate)
    same_T = (plain.topk_expert_ids_TK == steered.topk_expert_ids_TK).all(dim=-1)
    assert same_T.float().mean() > 0.5
    moved_T = (plain.topk_weights_TK != steered.topk_weights_TK).any(dim=-1)[same_T]
    assert moved_T.all() if actuation == "logits" else not moved_T.any()


def test_the_selection_actuation_weighs_by_clean_logits_also_what_the_field_brought_in() -> None:
    logits_TE = random_logits()
    steered = route(logits_TE, torch.linspace(-3, 3, E))
    expected_TK = logits_TE.gather(1, steered.topk_expert_ids_TK).softmax(-1)
    assert torch.equal(steered.topk_weights_TK, expected_TK)


@pytest.mark.parametrize("gate", ["topk_softmax", "softmax"])
@pytest.mark.parametrize("actuation", ["selection", "logits"])
@pytest.mark.parametrize("constant", [-64.0, 8.0])
@pytest.mark.parametrize("where", ["bias", "logits"])
def test_a_constant_on_all_biases_or_on_a_tokens_logits_changes_nothing(
    where: str, constant: float, actuation: str, gate: str
) -> None:
    # Multiples of 1/1024 add exactly, so that rounding cannot break ties: what remains is the invariance itself.
    logits_TE = (random_logits() * 1024).round() / 1024
    bias_E = torch.arange(E) / 8
    log_temperature_E = 0.2 * torch.linspace(-1, 1, E)
    kind = {"actuation": actuation, "gate": gate}
    plain = route(logits_TE, bias_E, log_temperature_E, **kind)
    if where == "bias":
        moved = route(logits_TE, bias_E + constant, log_temperature_E, **kind)
    else:
        moved = route(logits_TE + constant, bias_E, log_temperature_E, **kind)
    assert torch.equal(selected(moved), selected(plain))
    torch.testing.assert_close(moved.topk_weights_TK, plain.topk_weights_TK, rtol=0, atol=1e-5)


def test_a_sigmoid_gate_has_an_absolute_zero() -> None:
    """A constant on a token's logits moves its weights towards equal or unequal ones: documented, not a fault."""
    logits_TE = random_logits()
    plain, moved = (route(z_TE, gate="sigmoid").topk_weights_TK for z_TE in (logits_TE, logits_TE + 8.0))
    assert (moved.amax(dim=-1) < plain.amax(dim=-1)).all()


@pytest.mark.parametrize("gate", GATES)
@given(
    row=experts,
    bias=experts,
    log_temperature=st.lists(st.floats(-2, 2), min_size=E, max_size=E),
    expert=st.integers(0, E - 1),
    rise=st.floats(0, 20, width=32),
    k=st.integers(1, E - 1),
)
def test_raising_an_experts_bias_never_excludes_it(
    gate: str, row: list[float], bias: list[float], log_temperature: list[float], expert: int, rise: float, k: int
) -> None:
    logits_TE, bias_E, log_temperature_E = torch.tensor([row]), torch.tensor(bias), torch.tensor(log_temperature)
    ranked_TE = score(heat(logits_TE, log_temperature_E), gate) + bias_E
    assume(ranked_TE.unique().numel() == E)  # ties may fall either way
    before = selected(route(logits_TE, bias_E, log_temperature_E, top_k=k, gate=gate))[0, expert]
    raised_E = bias_E.clone()
    raised_E[expert] += rise
    after = selected(route(logits_TE, raised_E, log_temperature_E, top_k=k, gate=gate))[0, expert]
    assert after or not before


def test_temperature_divides_the_centred_logits() -> None:
    logits_TE = random_logits()
    log_temperature_E, bias_E = torch.linspace(-1, 1, E), torch.linspace(2, -1, E)
    centred_TE = logits_TE - logits_TE.mean(-1, keepdim=True)
    expected_TE = centred_TE / log_temperature_E.exp() + bias_E + logits_TE.mean(-1, keepdim=True)
    torch.testing.assert_close(heat(logits_TE, log_temperature_E) + bias_E, expected_TE)


def test_a_hotter_expert_gains_less_from_leading() -> None:
    logits_TE = random_logits(num_tokens=512)
    hot_E = torch.zeros(E)
    hot_E[2] = 0.5
    plain, heated = selected(route(logits_TE, top_k=1)), selected(route(logits_TE, log_temperature_E=hot_E, top_k=1))
    assert heated[:, 2].sum() < plain[:, 2].sum()


def test_the_gate_decides_in_fp32_under_autocast_and_in_a_bf16_model() -> None:
    router = TopKRouter(E, E, 2, "selection").to(torch.bfloat16)
    hidden_TE = random_logits().to(torch.bfloat16)
    zeros_E = torch.zeros(E)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(hidden_TE, zeros_E, zeros_E)
    assert routing.logits_TE.dtype == routing.topk_weights_TK.dtype == torch.float32
    assert torch.equal(routing.logits_TE, hidden_TE.float() @ router.gate.weight.float().T)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("actuation", ["selection", "logits"])
def test_the_gate_learns_through_the_weights_and_the_field_gets_no_gradient(actuation: str, gate: str) -> None:
    router = TopKRouter(E, E, 2, actuation, gate)
    bias_E, log_temperature_E = torch.zeros(E), torch.zeros(E)
    routing = router(random_logits(), bias_E, log_temperature_E)
    routing.topk_weights_TK[:, 0].sum().backward()
    assert router.gate.weight.grad.abs().sum() > 0
    assert bias_E.grad is None
    assert not routing.topk_expert_ids_TK.requires_grad


awkward = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, torch.finfo(torch.float32).min]), st.floats(-8, 8, width=32)
)
by_path = pytest.mark.parametrize("num_tokens", [1, 8, 9, 40], ids=lambda n: f"{n} tokens")
MANY = range(1, E + 1)


def repeated(row: list[float], num_tokens: int) -> Tensor:
    """The row in each of its rotations, for more tokens than a decoding step has."""
    return torch.stack([torch.tensor(row).roll(token) for token in range(num_tokens)])


@by_path
@pytest.mark.parametrize("top_k", MANY)
def test_selecting_equals_torchs_topk_where_values_are_distinct(top_k: int, num_tokens: int) -> None:
    ranked_TE = random_logits(num_tokens, seed=top_k)
    assert all(row.unique().numel() == E for row in ranked_TE)
    assert torch.equal(select_largest(ranked_TE, top_k), ranked_TE.topk(top_k, dim=-1).indices)


@by_path
@given(row=st.lists(awkward, min_size=E, max_size=E), top_k=st.integers(1, E))
def test_selecting_gives_distinct_experts_of_the_largest_values_whatever_the_row(
    num_tokens: int, row: list[float], top_k: int
) -> None:
    ranked_TE = repeated(row, num_tokens)
    before_TE, ids_TK = ranked_TE.clone(), select_largest(ranked_TE, top_k)
    assert ids_TK.dtype == torch.int64
    assert all(len(set(ids)) == top_k for ids in ids_TK.tolist())
    lowest = torch.finfo(torch.float32).min  # told from minus infinity by nobody
    found_TK, expected_TK = ranked_TE.gather(1, ids_TK), ranked_TE.topk(top_k, dim=-1).values
    assert torch.equal(found_TK.clamp(min=lowest), expected_TK.clamp(min=lowest))
    assert torch.equal(ranked_TE, before_TE)


@by_path
@given(
    row=st.lists(st.one_of(awkward, st.just(math.nan)), min_size=E, max_size=E).filter(
        lambda row: any(map(math.isnan, row))
    ),
    top_k=st.integers(1, E),
)
def test_selecting_gives_distinct_experts_even_of_what_is_not_a_number(
    num_tokens: int, row: list[float], top_k: int
) -> None:
    ids_TK = select_largest(repeated(row, num_tokens), top_k)
    assert all(len(set(ids)) == top_k and set(ids) <= set(range(E)) for ids in ids_TK.tolist())


@by_path
@pytest.mark.parametrize("value", [0.0, math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("top_k", MANY)
def test_selecting_gives_distinct_experts_where_all_are_the_same(top_k: int, value: float, num_tokens: int) -> None:
    ids_TK = select_largest(torch.full((num_tokens, E), value), top_k)
    assert all(len(set(ids)) == top_k for ids in ids_TK.tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "float64"])
def test_selecting_takes_other_dtypes(dtype: torch.dtype) -> None:
    ranked_TE = torch.linspace(-1, 1, E, dtype=dtype).repeat(20, 1)
    assert select_largest(ranked_TE, 3).tolist() == [[E - 1, E - 2, E - 3]] * 20


def test_a_token_with_an_infinite_activation_fails_loudly_in_its_weights_and_not_in_an_index() -> None:
    logits_TE = random_logits(20)
    logits_TE[3, 1] = math.nan
    routing = route(logits_TE)
    assert all(len(set(ids)) == 2 for ids in routing.topk_expert_ids_TK.tolist())
    assert int(routing.tokens_per_expert_E.sum()) == 40
    assert torch.isfinite(routing.topk_weights_TK[[0, 1, 2, *range(4, 20)]]).all()
