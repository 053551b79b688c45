"""Lent buffers: nobody writes over what somebody still holds, and what nobody holds is lent again.

SMALLEST is lowered, so that tensors of a few bytes are lent too.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model import buffers, dispatch
from chronomoe.model.buffers import ALIGNMENT, LARGER, Buffers
from chronomoe.model.causal_attention import CausalAttention
from chronomoe.model.lm import LanguageModel

LIKE = torch.zeros(())


@pytest.fixture(autouse=True)
def _everything_is_lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gc.disable()  # what comes back does so by itself, not when a collector passes by
    monkeypatch.setattr(buffers, "SMALLEST", 1)
    yield
    gc.enable()


def addresses(tensor: Tensor) -> range:
    storage = tensor.untyped_storage()
    return range(storage.data_ptr(), storage.data_ptr() + storage.nbytes())


def overlap(one: Tensor, other: Tensor) -> bool:
    a, b = addresses(one), addresses(other)
    return max(a.start, b.start) < min(a.stop, b.stop)


def free_bytes(lender: Buffers) -> list[int]:
    return sorted(len(memory) for free in lender.free.values() for memory in free)


SHARERS: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda lent: lent,
    "view": lambda lent: lent[1:2],
    "view of a view": lambda lent: lent.view(2, 2).T[0],
    "detached": lambda lent: lent.detach(),
    "numpy": lambda lent: lent.numpy(),
    "another dtype": lambda lent: lent.view(torch.uint8),
    "storage": lambda lent: lent.untyped_storage(),
    "parameter": torch.nn.Parameter,
    "saved by autograd": lambda lent: torch.ones(4, requires_grad=True) * lent,
    "saved by a function": lambda lent: lent.requires_grad_().exp().sum(),
    "gradient": lambda lent: setattr(leaf := torch.zeros(4, requires_grad=True), "grad", lent) or leaf,
    "closure": lambda lent: lambda: lent,
}


@pytest.mark.parametrize("share", SHARERS.values(), ids=SHARERS.keys())
def test_a_buffer_is_lent_again_only_when_the_last_who_shares_it_is_gone(share: Callable[[Tensor], object]) -> None:
    lender = Buffers()
    lent = lender.lend(LIKE, 4)
    lent.copy_(torch.arange(4.0))
    first = addresses(lent)
    sharer = share(lent)
    del lent
    assert free_bytes(lender) == []
    other = lender.lend(LIKE, 4)
    assert not set(addresses(other)) & set(first)
    del sharer
    assert free_bytes(lender) == [16]
    assert addresses(lender.lend(LIKE, 4)) == first


def test_the_gradient_that_autograd_keeps_is_not_lent_again() -> None:
    lender = Buffers()

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, d_y: Tensor) -> Tensor:
            return lender.lend(d_y, *d_y.shape).copy_(d_y)

    leaf = torch.zeros(4, requires_grad=True)
    Identity.apply(leaf).backward(torch.arange(4.0))
    assert leaf.grad is not None
    for _ in range(3):
        assert not overlap(lender.lend(LIKE, 4).fill_(-1.0), leaf.grad)
        assert leaf.grad.tolist() == [0, 1, 2, 3]
    Identity.apply(leaf).backward(torch.arange(4.0))
    assert leaf.grad.tolist() == [0, 2, 4, 6]
    leaf.grad = None
    assert 16 in free_bytes(lender)


def test_what_autograd_saved_stays_through_two_backward_passes_of_one_graph() -> None:
    lender = Buffers()
    leaf = torch.arange(1.0, 5.0, requires_grad=True)
    lent = lender.lend(LIKE, 4).copy_(torch.arange(4.0))
    loss = (leaf * lent).sum()
    del lent
    for _ in range(2):
        leaf.grad = None
        loss.backward(retain_graph=True)
        lender.lend(LIKE, 4).fill_(-1.0)
        assert leaf.grad is not None
        assert leaf.grad.tolist() == [0, 1, 2, 3]
    del loss
    assert free_bytes(lender) == [16, 16]


def test_a_small_need_is_left_to_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "SMALLEST", 64)
    lender = Buffers()
    lent = lender.lend(LIKE, 15)
    assert lent.shape == (15,)
    del lent
    assert free_bytes(lender) == []
    lender.lend(LIKE, 16)
    assert free_bytes(lender) == [64]


def test_a_device_other_than_the_processor_has_an_allocator_of_its_own() -> None:
    lender = Buffers()
    assert lender.lend(torch.empty(1, device="meta"), 1000).device.type == "meta"
    assert not lender.free


@pytest.mark.parametrize("need", [100, 81, 80, 79, 40, 1])
def test_who_needs_a_little_less_gets_a_larger_buffer_and_who_needs_much_less_does_not(need: int) -> None:
    lender = Buffers()
    large = addresses(lender.lend(LIKE, 100, dtype=torch.uint8))
    lent = lender.lend(LIKE, need, dtype=torch.uint8)
    assert lent.shape == (need,)
    assert (lent.data_ptr() == large.start) == (need * LARGER >= 100)
    del lent
    assert free_bytes(lender) == ([100] if need * LARGER >= 100 else [need, 100])


def test_who_needs_more_does_not_get_a_smaller_buffer() -> None:
    lender = Buffers()
    lender.lend(LIKE, 100)
    assert len(addresses(lender.lend(LIKE, 101))) == 404


def test_of_several_that_fit_the_smallest_is_lent() -> None:
    lender = Buffers()
    held = [lender.lend(LIKE, size, dtype=torch.uint8) for size in (120, 110, 115)]
    smallest = held[1].data_ptr()
    del held
    assert lender.lend(LIKE, 105, dtype=torch.uint8).data_ptr() == smallest


def test_a_larger_buffer_lent_for_less_is_whole_again_when_it_comes_back() -> None:
    lender = Buffers()
    start = lender.lend(LIKE, 100).data_ptr()
    lender.lend(LIKE, 90)
    assert lender.lend(LIKE, 100).data_ptr() == start


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 0, 3), (1, 2, 3, 4)], ids=str)
def test_what_is_lent_is_contiguous_aligned_and_of_the_shape_and_dtype_asked_for(
    shape: tuple[int, ...], dtype: torch.dtype | None
) -> None:
    lent = Buffers().lend(LIKE, *shape, dtype=dtype)
    assert lent.shape == shape
    assert lent.dtype == (dtype or torch.float32)
    assert lent.is_contiguous()
    assert lent.data_ptr() % ALIGNMENT == 0
    assert not lent.requires_grad


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_whoever_holds_a_buffer_finds_in_it_what_he_wrote(seed: int, most: int) -> None:
    """Lend, share, drop at random, of a few sizes near one another; every holder's numbers are his own."""
    draw, lender = random.Random(seed), Buffers()
    held: list[tuple[Tensor, float]] = []
    for number in range(100):
        if len(held) >= most or (held and draw.random() < 0.45):
            held.pop(draw.randrange(len(held)))
        elif held and draw.random() < 0.3:
            tensor, mark = draw.choice(held)
            held.append((tensor[draw.randrange(len(tensor)) :], mark))
        else:
            held.append((lender.lend(LIKE, draw.choice([8, 9, 10, 12, 40, 44])).fill_(number), float(number)))
        for tensor, mark in held:
            assert (tensor == mark).all()
        tensor = None
    held.clear()
    assert 0 < len(free_bytes(lender)) <= 6 * most  # never more of a size than were held at once


def train(model: LanguageModel, ids_BS: Tensor, steps: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """The gradients of every step."""
    gradients = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            model(ids_BS).loss(ids_BS.roll(-1, 1)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    return gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("half", [False, True], ids=["no copies", "copies with half gradients"])
def test_training_with_everything_lent_equals_training_with_nothing_lent_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Callable[..., LanguageModel],
    draw_ids: Callable[..., Tensor],
    dtype: torch.dtype,
    half: bool,
) -> None:
    ids_BS, results = draw_ids(2, 16), []
    monkeypatch.setattr(dispatch, "ROWS_STEP", 16)
    for smallest in (1, 2**60):
        monkeypatch.setattr(buffers, "SMALLEST", smallest)
        model = tiny_model().train()
        if half:
            model.keep_working_copies(torch.bfloat16, half_gradients=True)
        results.append(train(model, ids_BS, 3, dtype))
    for lent, allocated in zip(*results, strict=True):
        assert len(lent) == len(allocated) > 10
        for ours, theirs in zip(lent, allocated, strict=True):
            assert torch.equal(ours, theirs)


def test_accumulated_gradients_are_the_sum_of_each_alone(
    tiny_model: Callable[..., LanguageModel], draw_ids: Callable[..., Tensor]
) -> None:
    model, batches = tiny_model().train(), [draw_ids(2, 16, seed=seed) for seed in (1, 2)]

    def gradients(of: list[Tensor]) -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        for ids_BS in of:
            model(ids_BS).loss(ids_BS.roll(-1, 1)).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    both, first, second = gradients(batches), gradients(batches[:1]), gradients(batches[1:])
    for total, one, other in zip(both, first, second, strict=True):
        assert torch.equal(total, one + other)


def test_two_graphs_held_at_once_do_not_disturb_each_other() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 6, 4, 4, requires_grad=True) for _ in range(2)]
    angle_SA = torch.zeros(6, 4)

    def attend(x: Tensor) -> Tensor:
        y: Tensor = CausalAttention.apply(x, angle_SA.cos(), angle_SA.sin(), 1)
        return y.square().sum()

    alone = [torch.autograd.grad(attend(x), x)[0].clone() for x in inputs]
    graphs = [attend(x) for x in inputs]
    for loss, x, expected in zip(graphs, inputs, alone, strict=True):
        for _ in range(2):
            assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
