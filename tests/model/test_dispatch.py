"""Every way of carrying tokens to experts against a loop over tokens, and the ways against each other.

Axes: T tokens, D model dim, E experts, K experts per token, P rows presented to experts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model import dispatch as module
from chronomoe.model.dispatch import (
    Combine,
    Dispatched,
    Layout,
    Present,
    dispatch,
    dispatch_batched,
    dispatch_grouped,
    dispatch_sparse,
    lay_out,
)
from chronomoe.model.expert_choice import best_tokens
from chronomoe.model.experts import BLOCK_SIZES, ExpertBank
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.products import keep_working_copy
from chronomoe.model.router import RouterOutput, TopKRouter, drop_overflow

DIM, HIDDEN, E, TOKENS = 8, 12, 5, 24
FACTORS = [0.1, 0.5, 1.0, 1.25, 4.0]
FIELD = torch.linspace(-1, 1, E), torch.zeros(E)


def make_bank(activation: str = "swiglu") -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(E, DIM, HIDDEN, activation)
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return bank


def make_routing(
    top_k: int, factor: float | None, real_T: Tensor | None = None, num_tokens: int = TOKENS
) -> tuple[Tensor, RouterOutput]:
    torch.manual_seed(1)
    x_TD = torch.randn(num_tokens, DIM).requires_grad_()
    routing = TopKRouter(DIM, E, top_k, "selection")(x_TD, *FIELD)
    return x_TD, routing if factor is None else drop_overflow(routing, factor, real_T)


def one_expert(bank: ExpertBank, expert: int, x_D: Tensor) -> Tensor:
    hidden = bank.gate_up_EFD[expert] @ x_D
    return bank.down_EDF[expert] @ ACTIVATIONS[bank.activation].join(hidden)


def loop(x_TD: Tensor, routing: RouterOutput, bank: ExpertBank) -> tuple[Tensor, Tensor]:
    """(mixture [T, D], outputs [T, K, D]), one token and expert at a time; a dropped one adds nothing."""
    kept_TK = torch.ones_like(routing.topk_expert_ids_TK) if routing.kept_TK is None else routing.kept_TK
    outputs = [
        [one_expert(bank, int(e), x_D) if kept else torch.zeros(DIM) for e, kept in zip(ids, keeps, strict=True)]
        for x_D, ids, keeps in zip(x_TD, routing.topk_expert_ids_TK, kept_TK, strict=True)
    ]
    y_TKD = torch.stack([torch.stack(row) for row in outputs])
    return (routing.topk_weights_TK[..., None] * y_TKD).sum(dim=1), y_TKD


def run(way: str, x_TD: Tensor, routing: RouterOutput, bank: ExpertBank) -> Dispatched:
    if way == "grouped":
        return dispatch_grouped(x_TD, routing, bank)
    assert routing.kept_TK is not None
    assert routing.capacity is not None
    if way == "sparse":
        return dispatch_sparse(x_TD, routing, routing.kept_TK, bank)
    return dispatch_batched(x_TD, routing, routing.kept_TK, routing.capacity, bank)


@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
@pytest.mark.parametrize("top_k", [1, 2, E])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_values_and_gradients_equal_a_loop_over_tokens(way: str, factor: float, top_k: int, activation: str) -> None:
    (x_TD, routing), bank = make_routing(top_k, factor), make_bank(activation)
    ours_TD, outputs_of = run(way, x_TD, routing, bank)
    theirs_TD, y_TKD = loop(x_TD, routing, bank)
    torch.testing.assert_close(ours_TD, theirs_TD)
    tokens_S = torch.tensor([0, 7, TOKENS - 1, 7])
    torch.testing.assert_close(outputs_of(tokens_S), y_TKD[tokens_S])
    direction_TD = torch.linspace(-1, 1, ours_TD.numel()).view_as(ours_TD)
    inputs = [x_TD, *bank.parameters()]
    ours = torch.autograd.grad((ours_TD * direction_TD).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((theirs_TD * direction_TD).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_with_room_for_all_every_way_gives_the_same(activation: str, top_k: int) -> None:
    (x_TD, routing), bank = make_routing(top_k, float(E)), make_bank(activation)
    assert routing.kept_TK is not None
    assert routing.kept_TK.all()
    grouped = run("grouped", x_TD, routing, bank)
    for way in ("batched", "sparse"):
        other = run(way, x_TD, routing, bank)
        torch.testing.assert_close(other.mixture_TD, grouped.mixture_TD)
        every_T = torch.arange(TOKENS)
        torch.testing.assert_close(other.outputs_of(every_T), grouped.outputs_of(every_T))


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_a_token_whose_experts_all_dropped_it_gets_nothing_and_gives_no_gradient(way: str) -> None:
    (x_TD, routing), bank = make_routing(1, 0.5), make_bank()
    assert routing.kept_TK is not None
    lost_T = ~routing.kept_TK[:, 0]
    assert 0 < int(lost_T.sum()) < TOKENS
    fixed = routing._replace(topk_weights_TK=routing.topk_weights_TK.detach())
    y_TD, outputs_of = run(way, x_TD, fixed, bank)
    assert not y_TD[lost_T].any()
    assert not outputs_of(lost_T.nonzero().flatten()).any()
    gradient_TD = torch.autograd.grad(y_TD.sum(), x_TD)[0]
    assert not gradient_TD[lost_T].any()
    assert gradient_TD[~lost_T].any(dim=-1).all()


def test_dropping_keeps_the_counts_and_takes_the_weights() -> None:
    _, dropless = make_routing(2, None)
    _, routing = make_routing(2, 0.5)
    assert torch.equal(routing.tokens_per_expert_E, dropless.tokens_per_expert_E)
    assert routing.capacity == 5  # ceil(24 * 2 * 0.5 / 5)
    assert torch.equal(routing.topk_weights_TK != 0, routing.kept_TK)
    assert torch.equal(routing.topk_weights_TK[routing.kept_TK], dropless.topk_weights_TK[routing.kept_TK])


def test_an_expert_never_has_more_slots_than_there_are_tokens() -> None:
    assert make_routing(2, 1e6)[1].capacity == TOKENS


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_padding_takes_no_room_from_anyone(way: str) -> None:
    bank, real_T = make_bank(), torch.arange(TOKENS) % 3 != 1
    x_TD, dropless = make_routing(2, None)
    padded = drop_overflow(dropless, 0.75, real_T)
    alone = drop_overflow(
        dropless._replace(
            topk_expert_ids_TK=dropless.topk_expert_ids_TK[real_T], topk_weights_TK=dropless.topk_weights_TK[real_T]
        ),
        0.75,
        None,
    )
    assert torch.equal(padded.kept_TK[real_T], alone.kept_TK)
    assert not padded.kept_TK[~real_T].any()
    padded_TD, alone_TD = run(way, x_TD, padded, bank)[0], run(way, x_TD[real_T], alone, bank)[0]
    torch.testing.assert_close(padded_TD[real_T], alone_TD)
    assert not padded_TD[~real_T].any()


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_nothing_but_padding_is_nothing(way: str) -> None:
    bank, nobody_T = make_bank(), torch.zeros(TOKENS, dtype=torch.bool)
    x_TD, routing = make_routing(2, 1.0, nobody_T)
    assert not run(way, x_TD, routing, bank).mixture_TD.any()


def test_dropping_and_batched_products_never_ask_the_host() -> None:
    """The meta device has no values: whoever waits for one fails, as the sparse way does."""
    with torch.device("meta"):
        ids_TK, real_T = torch.empty(TOKENS, 2, dtype=torch.int64), torch.empty(TOKENS, dtype=torch.bool)
        scores_TE, counts_E = torch.empty(TOKENS, E), torch.empty(E, dtype=torch.int64)
        x_TD, tokens_S = torch.empty(TOKENS, DIM), torch.empty(3, dtype=torch.int64)
        bank = ExpertBank(E, DIM, HIDDEN)
        dropless = RouterOutput(ids_TK, torch.empty(TOKENS, 2), scores_TE, scores_TE, counts_E)
        routing = drop_overflow(dropless, 1.25, real_T)
        y_TD, outputs_of = run("batched", x_TD, routing, bank)
        assert y_TD.shape == x_TD.shape
        assert outputs_of(tokens_S).shape == (3, 2, DIM)
        assert best_tokens(scores_TE, 2.0, real_T).shape == (TOKENS, E)
        with pytest.raises(RuntimeError):
            run("sparse", x_TD, routing, bank)


TINY_BLOCKS = [0, 2, 3, 5, 8, 13, 21, 34]
by_blocks = pytest.mark.parametrize(
    "block_sizes", [None, TINY_BLOCKS, BLOCK_SIZES], ids=["any size", "tiny", "BLOCK_SIZES"]
)


@st.composite
def choices(draw: Callable) -> Tensor:
    """Distinct experts of each token, int64 [T, K]."""
    top_k, num_tokens = draw(st.integers(1, E)), draw(st.integers(1, 12))
    popular = draw(st.lists(st.sampled_from([-9.0, 0.0, 9.0]), min_size=E, max_size=E))  # some experts idle, some full
    noise_TE = torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(draw(st.integers(0, 999))))
    return (noise_TE + torch.tensor(popular)).topk(top_k, dim=-1).indices


def lay_out_choices(ids_TK: Tensor, block_sizes: list[int] | None) -> Layout:
    return lay_out(ids_TK, ids_TK.flatten().bincount(minlength=E), block_sizes)


@by_blocks
@given(choices())
def test_every_assignment_has_a_row_of_its_own_in_its_experts_block(
    block_sizes: list[int] | None, ids_TK: Tensor
) -> None:
    row_TK, token_P, rows_E = lay_out_choices(ids_TK, block_sizes)
    assert row_TK.unique().numel() == ids_TK.numel()
    assert int(row_TK.min()) >= 0
    assert int(row_TK.max()) < len(token_P)
    assert torch.equal(token_P[row_TK], torch.arange(len(ids_TK))[:, None].expand(ids_TK.shape))
    ends_E = rows_E.cumsum(0)
    assert (row_TK < ends_E[ids_TK]).all()
    assert (row_TK >= (ends_E - rows_E)[ids_TK]).all()


@by_blocks
@given(choices())
def test_tokens_keep_their_order_from_the_front_of_every_block(block_sizes: list[int] | None, ids_TK: Tensor) -> None:
    row_TK, _, rows_E = lay_out_choices(ids_TK, block_sizes)
    for expert, start in enumerate((rows_E.cumsum(0) - rows_E).tolist()):
        rows = row_TK[ids_TK == expert]  # in the tokens' order
        assert rows.tolist() == list(range(start, start + len(rows)))


@by_blocks
@given(choices())
def test_blocks_have_the_smallest_size_allowed(block_sizes: list[int] | None, ids_TK: Tensor) -> None:
    _, token_P, rows_E = lay_out_choices(ids_TK, block_sizes)
    counts = ids_TK.flatten().bincount(minlength=E).tolist()
    allowed = range(10**4) if block_sizes is None else block_sizes
    assert rows_E.tolist() == [min(size for size in allowed if size >= count) for count in counts]
    assert len(token_P) >= int(rows_E.sum())
    assert block_sizes is None or len(token_P) % module.ROWS_STEP == 0
    assert block_sizes is not None or len(token_P) == ids_TK.numel()


def test_block_sizes_rise_and_waste_at_most_a_quarter_of_a_large_block() -> None:
    assert sorted(set(BLOCK_SIZES)) == BLOCK_SIZES
    assert BLOCK_SIZES[0] == 0
    assert all(after - before <= max(16, before / 4) for before, after in pairwise(BLOCK_SIZES))
    assert BLOCK_SIZES[-1] > 2**26


def few_choices() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(4, E - 2, generator=generator).topk(2, dim=-1).indices  # the last two experts idle


by_few_blocks = pytest.mark.parametrize(
    "block_sizes", [None, [0, 4, 8], [0, 5]], ids=["any size", "four or eight", "five"]
)


@by_few_blocks
def test_presenting_is_a_gather_and_its_gradient_the_derivative(
    monkeypatch: pytest.MonkeyPatch, block_sizes: list[int] | None
) -> None:
    monkeypatch.setattr(module, "ROWS_STEP", 4)
    layout = lay_out_choices(few_choices(), block_sizes)
    used_P = torch.zeros(len(layout.token_P), dtype=torch.bool).index_fill(0, layout.row_TK.flatten(), True)
    x_TD = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.equal(Present.apply(x_TD, layout.row_TK, layout.token_P), x_TD[layout.token_P])

    def present(x_TD: Tensor) -> Tensor:  # what fills up is read by nobody
        return Present.apply(x_TD, layout.row_TK, layout.token_P) * used_P[:, None]

    assert torch.autograd.gradcheck(present, (x_TD,))


@by_few_blocks
def test_combining_is_a_weighted_sum_and_its_gradient_the_derivative(
    monkeypatch: pytest.MonkeyPatch, block_sizes: list[int] | None
) -> None:
    monkeypatch.setattr(module, "ROWS_STEP", 4)
    layout, generator = lay_out_choices(few_choices(), block_sizes), torch.Generator().manual_seed(0)
    assert block_sizes is None or len(layout.token_P) > 8  # some rows fill up
    y_PD = torch.randn(len(layout.token_P), 3, dtype=torch.float64, generator=generator).requires_grad_()
    weights_TK = torch.randn(4, 2, dtype=torch.float64, generator=generator).requires_grad_()
    rest = layout.row_TK, layout.token_P
    expected_TD = (y_PD[layout.row_TK] * weights_TK[:, :, None]).sum(dim=1)
    torch.testing.assert_close(Combine.apply(y_PD, weights_TK, *rest), expected_TD)
    assert torch.autograd.gradcheck(lambda y, w: Combine.apply(y, w, *rest), (y_PD, weights_TK))


@given(choices(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_that_fill_up_get_a_gradient_of_exactly_zero(ids_TK: Tensor, dtype: torch.dtype) -> None:
    layout = lay_out_choices(ids_TK, TINY_BLOCKS)
    y_PD = torch.full((len(layout.token_P), DIM), 1e30, dtype=dtype, requires_grad=True)
    mixture_TD = Combine.apply(y_PD, torch.rand(ids_TK.shape) + 0.5, layout.row_TK, layout.token_P)
    gradient_PD = torch.autograd.grad(mixture_TD, y_PD, torch.ones_like(mixture_TD))[0]
    used_P = torch.zeros(len(y_PD), dtype=torch.bool).index_fill(0, layout.row_TK.flatten(), True)
    assert not gradient_PD[~used_P].any()
    assert gradient_PD[used_P].all()


def values_and_gradients(
    x_TD: Tensor, routing: RouterOutput, bank: ExpertBank, dtype: torch.dtype = torch.float32, automatic: bool = False
) -> list[Tensor]:
    """Mixture, and the gradients of tokens, mixing weights and experts; the backward pass outside autocast, as in
    training."""
    leaf_TD = x_TD.detach().to(dtype).requires_grad_()
    weights_TK = routing.topk_weights_TK.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        y_TD = dispatch(leaf_TD, routing._replace(topk_weights_TK=weights_TK), bank).mixture_TD
    direction_TD = torch.linspace(-1, 1, y_TD.numel()).view_as(y_TD).to(y_TD.dtype)
    return [y_TD, *torch.autograd.grad(y_TD, [leaf_TD, weights_TK, *bank.parameters()], direction_TD)]


@pytest.mark.parametrize("top_k", [1, 2, 4, E])
@pytest.mark.parametrize("num_tokens", [1, 2, 9, TOKENS])
@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_the_grouped_way_does_not_depend_on_block_sizes_and_equals_the_loop(
    monkeypatch: pytest.MonkeyPatch, activation: str, num_tokens: int, top_k: int
) -> None:
    (x_TD, routing), bank = make_routing(top_k, None, num_tokens=num_tokens), make_bank(activation)
    results = []
    for sizes in (None, TINY_BLOCKS, BLOCK_SIZES):
        monkeypatch.setattr(ExpertBank, "block_sizes", lambda *_, sizes=sizes: sizes)
        results.append(values_and_gradients(x_TD, routing, bank))
    leaf_TD, weights_TK = x_TD.detach().requires_grad_(), routing.topk_weights_TK.detach().requires_grad_()
    looped_TD, _ = loop(leaf_TD, routing._replace(topk_weights_TK=weights_TK), bank)
    direction_TD = torch.linspace(-1, 1, looped_TD.numel()).view_as(looped_TD)
    inputs = [leaf_TD, weights_TK, *bank.parameters()]
    expected = [looped_TD, *torch.autograd.grad(looped_TD, inputs, direction_TD, allow_unused=True)]
    for found in results:
        for one, other in zip(found, expected, strict=True):
            other = torch.zeros_like(one) if other is None else other
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_experts_say_of_filling_rows_reaches_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token 0 stands in every filling row: were they read, its gradient and the experts' would grow with them."""
    (x_TD, routing), bank = make_routing(1, None), make_bank()
    results = []
    for sizes in ([0, 32], [0, 256]):
        monkeypatch.setattr(ExpertBank, "block_sizes", lambda *_, sizes=sizes: sizes)
        results.append(values_and_gradients(1e3 * x_TD, routing, bank))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))


@pytest.mark.parametrize("copies", [False, True], ids=["casts", "working copies"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("factor", [None, 1.0], ids=["dropless", "capacity"])
def test_under_autocast_it_equals_experts_cast_to_bf16_bit_for_bit(
    factor: float | None, top_k: int, copies: bool
) -> None:
    (x_TD, routing), bank, cast = make_routing(top_k, factor), make_bank(), make_bank().to(torch.bfloat16)
    if copies:
        for weight in bank.parameters():
            keep_working_copy(weight, torch.bfloat16, half_gradient=False)
    automatic = values_and_gradients(x_TD, routing, bank, torch.bfloat16, automatic=True)
    explicit = values_and_gradients(x_TD, routing, cast, torch.bfloat16)
    assert [t.dtype for t in automatic] == [torch.bfloat16] * 2 + [torch.float32] * 3
    for one, other in zip(automatic, explicit, strict=True):
        assert torch.equal(one.to(other.dtype), other)
    in_fp32 = values_and_gradients(x_TD, routing, bank)
    for one, other in zip(automatic, in_fp32, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=4e-2 * float(other.detach().abs().max()))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 9, TOKENS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_without_a_gradient_the_mixture_is_the_same(dtype: torch.dtype, num_tokens: int, top_k: int) -> None:
    (x_TD, routing), bank = make_routing(top_k, None, num_tokens=num_tokens), make_bank().to(dtype)
    with_gradient_TD = dispatch(x_TD.to(dtype), routing, bank).mixture_TD
    with torch.no_grad():
        without_TD = dispatch(x_TD.to(dtype), routing, bank).mixture_TD
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        without_TD, with_gradient_TD.detach(), rtol=0, atol=tolerance * float(without_TD.abs().max())
    )


@pytest.mark.parametrize("num_tokens", [1, 3, TOKENS])
@pytest.mark.parametrize("top_k", [1, 2, E])
def test_without_a_gradient_what_was_not_kept_is_zero_and_the_rest_is_the_loops(top_k: int, num_tokens: int) -> None:
    """As under the threshold of expert choice: any number kept, and no capacity."""
    (x_TD, routing), bank = make_routing(top_k, None, num_tokens=num_tokens), make_bank()
    kept_TK = torch.rand(routing.topk_expert_ids_TK.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    kept_TK[0] = False
    routing = routing._replace(kept_TK=kept_TK, topk_weights_TK=routing.topk_weights_TK.masked_fill(~kept_TK, 0.0))
    with torch.no_grad():
        y_TD, outputs_of = dispatch(x_TD, routing, bank)
        looped_TD, looped_TKD = loop(x_TD, routing, bank)
    torch.testing.assert_close(y_TD, looped_TD)
    found_TKD = outputs_of(torch.arange(num_tokens))
    torch.testing.assert_close(found_TKD, looped_TKD)
    assert not found_TKD[~kept_TK].any()
