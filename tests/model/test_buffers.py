"""What is lent is nobody else's until the last tensor over it is gone."""

from __future__ import annotations

import gc
import random

import pytest
import torch
from torch import Tensor

from chronomoe.model import buffers
from chronomoe.model.buffers import LARGER, Buffers
from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings

LIKE = torch.zeros(1)


@pytest.fixture(autouse=True)
def _lend_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "SMALLEST", 1)


def overlap(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_a_buffer_comes_back_when_it_is_dropped_and_not_before() -> None:
    pool = Buffers()
    first = pool.lend(LIKE, 4, 8)
    where = first.untyped_storage().data_ptr()
    second = pool.lend(LIKE, 4, 8)
    assert not overlap(first, second)
    del first
    assert pool.lend(LIKE, 32).untyped_storage().data_ptr() == where


@pytest.mark.parametrize("share", [lambda t: t[1:], lambda t: t.detach(), lambda t: t.view(-1), lambda t: t.T])
def test_whoever_shares_its_storage_keeps_it(share: object) -> None:
    pool = Buffers()
    lent = pool.lend(LIKE, 4, 8)
    shared = share(lent)  # type: ignore[operator]
    del lent
    gc.collect()
    assert not overlap(shared, pool.lend(LIKE, 4, 8))


def test_a_gradient_and_a_graph_keep_theirs() -> None:
    pool = Buffers()

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            kept = pool.lend(x, *x.shape).copy_(x)
            ctx.save_for_backward(kept)  # type: ignore[attr-defined]
            return 2 * x

        @staticmethod
        def backward(ctx: object, d_y: Tensor) -> Tensor:
            (kept,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return pool.lend(d_y, *d_y.shape).copy_(2 * d_y * kept / kept)

    x = torch.arange(1.0, 9.0).requires_grad_()
    y = Double.apply(x)
    intruders = [pool.lend(LIKE, 8).fill_(float("nan")) for _ in range(3)]
    y.sum().backward(retain_graph=True)
    intruders += [pool.lend(LIKE, 8).fill_(float("nan")) for _ in range(3)]
    assert torch.equal(x.grad, torch.full((8,), 2.0))  # type: ignore[arg-type]
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((8,), 4.0))  # type: ignore[arg-type]
    assert len(intruders) == 6


def test_no_two_live_buffers_overlap_whatever_is_lent_and_dropped() -> None:
    pool, generator, live = Buffers(), random.Random(0), {}
    for turn in range(400):
        if live and generator.random() < 0.5:
            del live[generator.choice(list(live))]
        else:
            live[turn] = pool.lend(LIKE, generator.randint(1, 6), generator.randint(1, 6)).fill_(float(turn))
        assert all(bool((tensor == value).all()) for value, tensor in live.items())


def test_a_smaller_need_takes_a_little_larger_buffer_but_not_a_much_larger_one() -> None:
    pool = Buffers()
    where = pool.lend(LIKE, 1000).untyped_storage().data_ptr()
    little, much = int(1000 / LARGER) + 1, int(1000 / LARGER) - 1
    assert pool.lend(LIKE, much).untyped_storage().data_ptr() != where
    assert pool.lend(LIKE, little).untyped_storage().data_ptr() == where
    assert pool.lend(LIKE, 1000).untyped_storage().data_ptr() == where  # it came back whole


def test_small_needs_and_other_devices_are_left_to_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "SMALLEST", 1000)
    pool = Buffers()
    pool.lend(LIKE, 8), pool.lend(LIKE.to("meta"), 4096)
    assert not pool.free


def test_a_training_step_is_the_same_whether_memory_is_lent_or_new(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(
        num_layers=2, num_experts=4, dim=16, hidden_dim=24, num_heads=2, num_kv_heads=1, vocab_size=40, max_seq_len=64
    )
    ids_BS = torch.randint(40, (3, 21), generator=torch.Generator().manual_seed(1))
    found = []
    for smallest in (1, 2**40):
        monkeypatch.setattr(buffers, "SMALLEST", smallest)
        torch.manual_seed(0)
        model = LanguageModel(settings, RouterSettings(kind="mixtral", top_k=2)).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            model(ids_BS[:, :-1]).loss(ids_BS[:, 1:]).backward()
            optimizer.step()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(lent, new) for lent, new in zip(*found, strict=True))
