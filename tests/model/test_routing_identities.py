"""What holds for any logits: capacity, k distinct experts, weights (P7 to P12, P15, P16, and the mask of S12).

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hybrid_models import EXACT, draw_ids, hybrid_model, worst
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.capacity import capacity_of
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.router import RouterOutput, TopKRouter

E = 8


def route(
    logits_TE: Tensor, top_k: int, factor: float | None, gate: str = "topk_softmax", training: bool = True
) -> RouterOutput:
    """With these very logits: the gate is the identity."""
    router = TopKRouter(E, E, top_k, "selection", gate, capacity_factor=factor).train(training)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(E))
        routed: RouterOutput = router(logits_TE, torch.zeros(E), None)
    return routed


def drawn(tokens: int) -> Tensor:
    return torch.randn(tokens, E, generator=torch.Generator().manual_seed(tokens))


ADVERSARIAL: dict[str, Callable[[int], Tensor]] = {
    "drawn": drawn,
    "identical tokens": lambda tokens: drawn(1).expand(tokens, E),
    "all ties": lambda tokens: torch.zeros(tokens, E),
    "one-hot": lambda tokens: 1e4 * torch.eye(E)[torch.zeros(tokens, dtype=torch.int64)],
    "huge": lambda tokens: 1e4 * drawn(tokens),
    "rising": lambda tokens: torch.arange(float(E)).expand(tokens, E),
}
by_logits = pytest.mark.parametrize("make", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())


@given(
    tokens=st.integers(1, 400),
    top_k=st.integers(1, 4),
    hundredths=st.integers(1, 800),
    more=st.integers(0, 50),
)
def test_capacity_is_monotone_in_all_but_the_experts(tokens: int, top_k: int, hundredths: int, more: int) -> None:
    factor = hundredths / 100
    slots = capacity_of(tokens * top_k, E, factor)
    assert slots == math.ceil(Fraction(hundredths, 100) * tokens * top_k / E)
    assert capacity_of((tokens + more) * top_k, E, factor) >= slots
    assert capacity_of(tokens * (top_k + more), E, factor) >= slots
    assert capacity_of(tokens * top_k, E, (hundredths + more) / 100) >= slots
    assert capacity_of(tokens * top_k, E + more, factor) <= slots


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.1, 1.25, 4.0])
@pytest.mark.parametrize("top_k", [1, 2])
@by_logits
def test_no_expert_overflows_and_nothing_is_lost_unaccounted(
    make: Callable[[int], Tensor], top_k: int, factor: float
) -> None:
    for tokens in (1, 7, 200):
        routed = route(make(tokens), top_k, factor)
        slots = math.ceil(Fraction(str(factor)) * tokens * top_k / E)
        assert routed.kept_TK is not None
        kept_E = routed.topk_expert_ids_TK[routed.kept_TK].bincount(minlength=E)
        assert int(kept_E.max()) <= slots
        assert int(routed.tokens_per_expert_E.sum()) == tokens * top_k
        dropped_E = routed.tokens_per_expert_E - kept_E
        assert torch.equal(dropped_E, (routed.tokens_per_expert_E - slots).clamp(min=0))
        assert not routed.topk_weights_TK[~routed.kept_TK].any()


def test_tokens_on_the_same_experts_keep_as_many_as_fit() -> None:
    """The reference's example: 256 tokens, capacity 80, 160 of 512 kept."""
    routed = route(ADVERSARIAL["identical tokens"](256), 2, 1.25)
    assert routed.kept_TK is not None
    assert int(routed.kept_TK.sum()) == 160
    assert routed.kept_TK[:80].all()  # the first come


@by_logits
def test_enough_capacity_drops_nothing_and_weighs_as_without(make: Callable[[int], Tensor]) -> None:
    """phi = E/k, and any phi from 1 on where loads are even."""
    for top_k in (1, 2):
        routed, free = (route(make(50), top_k, factor) for factor in (E / top_k, None))
        assert routed.kept_TK is not None
        assert routed.kept_TK.all()
        assert torch.equal(routed.topk_weights_TK, free.topk_weights_TK)
    even = torch.eye(E).repeat(6, 1) + torch.eye(E).roll(1, 0).repeat(6, 1) / 2
    routed = route(even, 2, 1.0)
    assert routed.kept_TK is not None
    assert routed.kept_TK.all()


@pytest.mark.parametrize("gate", ["topk_softmax", "softmax", "sigmoid"])
@by_logits
def test_a_token_takes_distinct_experts_with_weights_of_a_distribution(
    make: Callable[[int], Tensor], gate: str
) -> None:
    for top_k in (1, 2, 5, E):
        routed = route(make(20), top_k, None, gate)
        assert all(len(set(ids)) == top_k for ids in routed.topk_expert_ids_TK.tolist())
        weights_TK = routed.topk_weights_TK
        assert (weights_TK >= 0).all()
        total_T = weights_TK.sum(dim=1)
        if gate == "softmax":
            assert (total_T <= 1 + 1e-6).all()
        else:
            torch.testing.assert_close(total_T, torch.ones(20))


@pytest.mark.parametrize("gate", ["topk_softmax", "softmax", "sigmoid"])
@by_logits
def test_a_token_alone_goes_where_it_goes_among_others_ties_included(make: Callable[[int], Tensor], gate: str) -> None:
    """Saturated gates do tie: sigmoids of 1e4 are all 1."""
    logits_TE = make(30)
    for top_k in (1, 2, 4, 5):
        together = route(logits_TE, top_k, None, gate).topk_expert_ids_TK
        alone = [route(logits_TE[t : t + 1], top_k, None, gate).topk_expert_ids_TK for t in range(30)]
        assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("tokens", [1, 30])
def test_ties_go_to_the_lowest_experts(tokens: int) -> None:
    for top_k in (1, 2, 4):
        assert route(torch.zeros(tokens, E), top_k, None).topk_expert_ids_TK.tolist() == [list(range(top_k))] * tokens


@given(seed=st.integers(0, 999), at=st.integers(1, 59), top_k=st.integers(1, 3))
def test_later_tokens_move_no_earlier_one_out(seed: int, at: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(60, E, generator=generator)
    other_TE = torch.cat((logits_TE[:at], torch.randn(60 - at, E, generator=generator)))
    one, other = (route(x_TE, top_k, 0.75).kept_TK for x_TE in (logits_TE, other_TE))
    assert one is not None
    assert other is not None
    assert torch.equal(one[:at], other[:at])


@pytest.mark.parametrize("factor", [2.0, 1.0])
def test_a_hybrid_with_room_for_all_is_the_dropless_one_and_evaluation_always_is(factor: float) -> None:
    """E/k = 2."""
    free, capped = hybrid_model().train(), hybrid_model(router={"capacity_factor": factor}).train()
    ids_BS = draw_ids(2, 40)
    with torch.no_grad():
        apart = worst(capped(ids_BS).hidden_BSD, free(ids_BS).hidden_BSD)
        dropped = sum(int((~routing.kept_TK).sum()) for routing in capped(ids_BS).routings)
        assert (apart < EXACT) == (dropped == 0) == (factor == 2.0)
        assert torch.equal(capped.eval()(ids_BS).hidden_BSD, free.eval()(ids_BS).hidden_BSD)
        state = capped.new_state(2)
        assert all(routing.kept_TK is None for routing in capped(ids_BS, state=state).routings)


def test_padding_takes_no_place_of_a_hybrids_experts() -> None:
    model = hybrid_model(router={"capacity_factor": 1.0}, positions="none").train()
    ids_BS = draw_ids(1, 30)
    padded_BS, real_BC = torch.nn.functional.pad(ids_BS, (9, 4)), torch.zeros(1, 43, dtype=torch.bool)
    real_BC[:, 9:39] = True
    with torch.no_grad():
        whole_BSD, counted = model(ids_BS).hidden_BSD, model.sensor_LEC.clone()
        model.sensor_LEC.zero_()
        assert worst(model(padded_BS, real_BC=real_BC).hidden_BSD[:, 9:39], whole_BSD) < EXACT
    assert torch.equal(model.sensor_LEC, counted)
    assert (counted[..., 0].sum(dim=-1) == 60).all()


def test_softmax_sums_to_one_and_sees_differences_alone_and_gelu_is_smooth() -> None:
    for scale in (1.0, 1e4):
        logits_TE = scale * drawn(9)
        weights_TK = route(logits_TE, E, None).topk_weights_TK
        assert weights_TK.isfinite().all()
        torch.testing.assert_close(weights_TK.sum(-1), torch.ones(9))
        torch.testing.assert_close(route(logits_TE + 64.0, E, None).topk_weights_TK, weights_TK, rtol=1e-3, atol=1e-3)
    gelu = ACTIVATIONS["gelu"].join
    assert gelu(torch.zeros(3)).tolist() == [0.0] * 3
    x = drawn(2).double().requires_grad_()
    assert torch.autograd.gradcheck(gelu, x)
    torch.testing.assert_close(gelu(x), x * 0.5 * (1 + torch.erf(x / 2**0.5)))
