"""The recurrence of RWKV-7 against its equation, and the chunked form against the recurrence.

Axes: B batch, S sequence, H heads, N head width, C chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from chronomoe.model import chunked_wkv
from chronomoe.model.chunked_wkv import CHUNKS, wkv_chunked
from chronomoe.model.wkv import LOWEST_LOG_DECAY, Inputs, exact_products, wkv_recurrent

EXACT, SINGLE = 1e-10, 1e-5
"""Relative to the largest entry: in fp64, in fp32."""
KINDS = ("random", "strongest decay", "one key again and again")
FORMS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"recurrent": wkv_recurrent, "chunked": wkv_chunked}
by_form = pytest.mark.parametrize("run", FORMS.values(), ids=FORMS.keys())


def draw(
    batch: int,
    length: int,
    heads: int = 2,
    width: int = 8,
    dtype: torch.dtype = torch.float64,
    kind: str = "random",
    seed: int = 0,
) -> tuple[Inputs, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (batch, length, heads, width)
    log_w = LOWEST_LOG_DECAY * (2 * normal(*shape)).sigmoid()
    key, rate = normalize(normal(*shape), dim=-1), normal(*shape).sigmoid()
    if kind == "strongest decay":
        log_w = torch.full_like(log_w, LOWEST_LOG_DECAY)
    if kind == "one key again and again":  # never decaying and wholly replaced: what powers of P_ab do not survive
        log_w, key, rate = 1e-3 * log_w, key[:, :1].expand(shape), torch.full_like(rate, 0.999)
    inputs = Inputs(normal(*shape), log_w, normal(*shape), normal(*shape), -key, rate * key)
    return Inputs(*(x.to(dtype) for x in inputs)), normal(batch, heads, width, width).to(dtype)


def differentiate(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: Inputs, state: Tensor, **options: Any
) -> list[Tensor]:
    """Outputs, state and the gradients of the six inputs and of the incoming state, in a fixed direction."""
    given_ = [x.detach().clone().requires_grad_() for x in (*inputs, state)]
    outputs = run(*given_, **options)
    return [*(x.detach() for x in outputs), *torch.autograd.grad(outputs, given_, [direction(x) for x in outputs])]


def direction(like: Tensor) -> Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return drawn.to(like.dtype)


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest entry of its tensor."""
    return max(
        float((x.double() - y.double()).abs().max() / y.double().abs().max().clamp_min(1e-30))
        for x, y in zip(found, expected, strict=True)
    )


def piece(inputs: Inputs, *where: slice) -> Inputs:
    return Inputs(*(x[where] for x in inputs))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles of several chunks, of problems as small as these."""
    monkeypatch.setattr(chunked_wkv, "TILE", 128)


def test_recurrence_is_the_equation() -> None:
    inputs, incoming = draw(2, 6, heads=3, width=4)
    r, log_w, k, v, a, b = (x.numpy() for x in inputs)
    o, last = np.zeros((2, 6, 3, 4)), np.zeros((2, 3, 4, 4))
    for row in range(2):
        for head in range(3):
            S = incoming[row, head].numpy()
            for t in range(6):
                at = (row, t, head)
                S = np.diag(np.exp(log_w[at])) @ S + np.outer(b[at], S.T @ a[at]) + np.outer(k[at], v[at])
                o[at] = S.T @ r[at]
            last[row, head] = S
    found = wkv_recurrent(*inputs, incoming)
    assert worst(list(found), [torch.from_numpy(o), torch.from_numpy(last)]) < EXACT


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 260),
    chunk=st.sampled_from(CHUNKS),
    kind=st.sampled_from(KINDS),
    starts=st.sampled_from([None, 0.02, 0.3]),
    tile=st.sampled_from([64, 512, 10**6]),
)
def test_chunks_equal_the_recurrence_gradients_too(
    length: int, chunk: int, kind: str, starts: float | None, tile: int
) -> None:
    inputs, state = draw(2, length, kind=kind, seed=length)
    starts_BS = None
    if starts is not None:
        starts_BS = torch.rand(2, length, generator=torch.Generator().manual_seed(length)) < starts
    expected = differentiate(wkv_recurrent, inputs, state, starts_BS=starts_BS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_wkv, "TILE", tile)
        found = differentiate(wkv_chunked, inputs, state, starts_BS=starts_BS, chunk=chunk)
    assert worst(found, expected) < EXACT


@pytest.mark.parametrize("chunk", [16, 32, 64, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_equal_the_recurrence_in_single_precision(kind: str, chunk: int) -> None:
    inputs, state = draw(1, 256, heads=1, width=64, kind=kind)
    expected = differentiate(wkv_chunked, inputs, state, chunk=8)  # fp64, itself equal to the recurrence
    single = Inputs(*(x.float() for x in inputs))
    found = differentiate(wkv_chunked, single, state.float(), chunk=chunk)
    assert all(x.dtype == torch.float32 for x in found)
    assert worst(found, expected) < SINGLE


def test_the_recurrence_itself_in_single_precision() -> None:
    inputs, state = draw(1, 256, heads=1, width=64)
    expected = differentiate(wkv_recurrent, inputs, state)
    found = differentiate(wkv_recurrent, Inputs(*(x.float() for x in inputs)), state.float())
    assert worst(found, expected) < SINGLE


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 149), max_size=5), forms=st.lists(st.sampled_from([*FORMS]), min_size=6, max_size=6)
)
def test_any_split_is_the_whole(cuts: list[int], forms: list[str]) -> None:
    inputs, incoming = draw(2, 150)
    ends = [0, *sorted(set(cuts)), 150]

    def in_pieces(*given_: Tensor) -> tuple[Tensor, Tensor]:
        state, outs = given_[6], []
        for (start, end), form in zip(pairwise(ends), forms, strict=False):
            o, state = FORMS[form](*(x[:, start:end] for x in given_[:6]), state)
            outs.append(o)
        return torch.cat(outs, dim=1), state

    assert worst(differentiate(in_pieces, inputs, incoming), differentiate(wkv_recurrent, inputs, incoming)) < EXACT


@by_form
def test_packed_documents_are_separate_documents(run: Callable[..., tuple[Tensor, Tensor]], small_tiles: None) -> None:
    """The first goes on from a carried state; borders within chunks, at chunk borders, next to each other, at 0."""
    for borders in ([32, 33, 50, 96], [0, 5, 64], [1], [129]):
        inputs, incoming = draw(1, 130)
        starts_BS = torch.zeros(1, 130, dtype=torch.bool)
        starts_BS[0, borders] = True
        found = differentiate(run, inputs, incoming, starts_BS=starts_BS)

        def separately(*given_: Tensor, ends: tuple[int, ...] = (0, *borders, 130)) -> tuple[Tensor, Tensor]:
            state, outs = given_[6], []
            for n, (start, end) in enumerate(pairwise(ends)):
                state = state if n == 0 else torch.zeros_like(state)
                if end > start:
                    o, state = wkv_recurrent(*(x[:, start:end] for x in given_[:6]), state)
                    outs.append(o)
            return torch.cat(outs, dim=1), state + 0 * given_[6]

        assert worst(found, differentiate(separately, inputs, incoming)) < EXACT


@pytest.mark.parametrize("length", [1, 40, 64])
@by_form
def test_no_bit_of_one_document_reaches_the_next(run: Callable[..., tuple[Tensor, Tensor]], length: int) -> None:
    inputs, state = draw(2, 70, dtype=torch.float32)
    others, _ = draw(2, 70, dtype=torch.float32, kind="strongest decay", seed=1)
    starts_BS = torch.zeros(2, 70, dtype=torch.bool)
    starts_BS[:, length] = True
    changed = Inputs(*(torch.cat((y[:, :length], x[:, length:]), dim=1) for x, y in zip(inputs, others, strict=True)))
    (o, last), (o_changed, last_changed) = (run(*x, state, starts_BS=starts_BS) for x in (inputs, changed))
    assert torch.equal(o[:, length:], o_changed[:, length:])
    assert torch.equal(last, last_changed)


@pytest.mark.parametrize("token", [0, 1, 31, 32, 63, 69])
@by_form
def test_earlier_outputs_are_bitwise_those_without_what_follows(
    run: Callable[..., tuple[Tensor, Tensor]], token: int
) -> None:
    for kind in KINDS:
        inputs, state = draw(2, 70, width=64, dtype=torch.float32, kind=kind)
        others, _ = draw(2, 70, width=64, dtype=torch.float32, seed=1)
        changed = [torch.cat((x[:, :token], y[:, token:]), dim=1) for x, y in zip(inputs, others, strict=True)]
        assert torch.equal(run(*inputs, state)[0][:, :token], run(*changed, state)[0][:, :token])


@pytest.mark.parametrize("padding", [1, 24, 56, 200])
@by_form
def test_padding_leaves_every_bit_of_the_state(run: Callable[..., tuple[Tensor, Tensor]], padding: int) -> None:
    """Whatever it reads and would have written: log w, k and b are zero."""
    inputs, state = draw(2, 40, dtype=torch.float32)
    others, _ = draw(2, padding, dtype=torch.float32, seed=1)
    idle = others._replace(**{name: torch.zeros_like(others.k) for name in ("log_w", "k", "b")})
    padded = [torch.cat(pair, dim=1) for pair in zip(inputs, idle, strict=True)]
    (o, last), (o_padded, last_padded) = run(*inputs, state), run(*padded, state)
    assert torch.equal(last, last_padded)
    assert torch.equal(o, o_padded[:, :40])
    assert torch.equal(run(*idle, state)[1], state)


@by_form
def test_a_row_does_not_depend_on_the_others(run: Callable[..., tuple[Tensor, Tensor]], small_tiles: None) -> None:
    inputs, state = draw(3, 70, dtype=torch.float32)
    together = run(*inputs, state)
    for row in range(3):
        only = slice(row, row + 1)
        for alone, among in zip(run(*piece(inputs, only), state[only]), together, strict=True):
            assert torch.equal(alone[0], among[row])


def test_a_split_between_chunks_changes_no_bit(small_tiles: None) -> None:
    inputs, state = draw(2, 130, dtype=torch.float32)
    whole, last = wkv_chunked(*inputs, state)
    first, between = wkv_chunked(*piece(inputs, slice(None), slice(64)), state)
    second, end = wkv_chunked(*piece(inputs, slice(None), slice(64, None)), between)
    assert torch.equal(torch.cat((first, second), dim=1), whole)
    assert torch.equal(end, last)


@by_form
def test_half_precision_inputs_are_computed_in_single(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    inputs, state = draw(1, 50, dtype=torch.float32)
    half = Inputs(*(x.bfloat16() for x in inputs))
    found = differentiate(run, half, state)
    expected = differentiate(run, Inputs(*(x.float() for x in half)), state)
    assert [x.dtype for x in found] == [torch.float32] * 2 + [torch.bfloat16] * 6 + [torch.float32]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert worst(found, expected) < 1e-2


@pytest.mark.parametrize("precision", ["medium", "high"])
@by_form
def test_neither_autocast_nor_coarser_products_change_a_bit(
    run: Callable[..., tuple[Tensor, Tensor]], precision: str
) -> None:
    inputs, state = draw(1, 50, width=64, dtype=torch.float32)
    expected = run(*inputs, state)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        coarse = torch.backends.mkldnn.matmul.fp32_precision
        with torch.autocast("cpu", torch.bfloat16):
            found = run(*inputs, state)
        assert torch.backends.mkldnn.matmul.fp32_precision == coarse
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def test_exact_products_are_exact_and_over_afterwards() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with torch.autocast("cpu", torch.bfloat16), suppress(RuntimeError), exact_products("cpu"):
        within = torch.backends.mkldnn.matmul.fp32_precision, torch.is_autocast_enabled("cpu")
        raise RuntimeError("an error inside")
    assert within == ("ieee", False)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_eigenvalues_of_a_step_lie_between_decay_minus_one_and_one() -> None:
    inputs, _ = draw(8, 32, width=16)
    transition = torch.diag_embed(inputs.log_w.exp()) + inputs.b[..., None] * inputs.a[..., None, :]
    values = torch.linalg.eigvals(transition)
    assert float(values.imag.abs().max()) < 1e-7
    assert float(values.real.min()) > np.exp(LOWEST_LOG_DECAY) - 1  # -0.4547
    assert float(values.real.max()) < 1
    assert float(torch.linalg.matrix_norm(transition, 2).max()) > 1  # so that no norm of it bounds the state


def test_a_long_run_stays_bounded_and_precise() -> None:
    inputs, state = draw(1, 8192, width=16, dtype=torch.float32)
    exact = Inputs(*(x.double() for x in inputs))
    sizes, expected = [], state.double()
    found = state
    for start in range(0, 8192, 1024):
        now = slice(start, start + 1024)
        found = wkv_chunked(*piece(inputs, slice(None), now), found)[1]
        expected = wkv_chunked(*piece(exact, slice(None), now), expected)[1]
        sizes.append(float(found.abs().max()))
    assert max(sizes[4:]) < 2 * max(sizes[:4])
    assert worst([found], [expected]) < SINGLE


def test_a_written_out_gradient_is_the_derivative() -> None:
    inputs, state = draw(1, 11, heads=1, width=3)
    given_ = [x.clone().requires_grad_() for x in (*inputs, state)]
    starts_BS = torch.arange(11)[None] == 5
    assert torch.autograd.gradcheck(lambda *x: wkv_chunked(*x, starts_BS=starts_BS, chunk=4), given_)


def test_twice_is_once_too_often() -> None:
    inputs, state = draw(1, 5)
    r = inputs.r.requires_grad_()
    (gradient,) = torch.autograd.grad(wkv_chunked(*inputs, state)[0].square().sum(), r, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@by_form
def test_the_given_state_is_left_alone(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    inputs, state = draw(2, 70)
    before = state.clone()
    _, new_state = run(*inputs, state)
    assert torch.equal(state, before)
    assert new_state.data_ptr() != state.data_ptr()


def test_products_grow_linearly_with_length() -> None:
    def flops(length: int) -> int:
        inputs, state = draw(1, length, width=64, dtype=torch.float32)
        given_ = [x.requires_grad_() for x in (*inputs, state)]
        with FlopCounterMode(display=False) as counter:
            outputs = wkv_chunked(*given_, chunk=32)
            torch.autograd.grad(outputs, given_, [torch.ones_like(x) for x in outputs])
        return counter.get_total_flops()

    assert flops(64) > 0
    assert flops(512) == 2 * flops(256) == 8 * flops(64)


@pytest.mark.parametrize("chunk", [0, 3, 48, 256])
def test_a_chunk_must_be_a_power_of_two_that_fp32_holds(chunk: int) -> None:
    inputs, state = draw(1, 5)
    with pytest.raises(ValueError, match="chunk must be one of"):
        wkv_chunked(*inputs, state, chunk=chunk)
