"""Cross-entropy by chunks against torch's, in float64, of logits formed whole.

Axes: T tokens, D model dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chronomoe.model import cross_entropy as module
from chronomoe.model.cross_entropy import ChunkedCrossEntropy, cross_entropy
from chronomoe.model.products import onednn_multiplies

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
libraries = pytest.mark.parametrize(
    "library",
    [
        "torch",
        pytest.param("onednn", marks=pytest.mark.skipif(not onednn_multiplies("cpu", torch.float32), reason="absent")),
    ],
)
by_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "fp32", "bf16"])


def draw(tokens: int, dim: int, vocabulary: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head, targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(tokens, dim, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(vocabulary, dim, generator=generator).to(dtype).requires_grad_()
    return hidden_TD, head_VD, torch.randint(vocabulary, (tokens,), generator=generator)


def reference(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, upstream: float = 1.0) -> list[Tensor]:
    """Loss, and the gradients of hidden states and head, by torch in float64."""
    inputs = [x.detach().double().requires_grad_() for x in (hidden_TD, head_VD)]
    loss = functional.cross_entropy(inputs[0] @ inputs[1].T, targets_T)
    return [loss.detach(), *torch.autograd.grad(upstream * loss, inputs)]


def chunked(
    hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, chunk: int, upstream: float = 1.0, library: str = "torch"
) -> list[Tensor]:
    loss = ChunkedCrossEntropy.apply(hidden_TD, head_VD, targets_T, library, chunk)
    return [loss, *torch.autograd.grad(upstream * loss, (hidden_TD, head_VD))]


def assert_near(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """`tolerance` of the largest number of each."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * float(other.abs().max()))


@libraries
@by_dtype
@pytest.mark.parametrize("upstream", [1.0, -0.25, 0.0])
@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 100], ids=lambda chunk: f"chunk{chunk}")
def test_loss_and_gradients_equal_torchs_whatever_the_chunk(
    chunk: int, upstream: float, dtype: torch.dtype, library: str
) -> None:
    inputs = draw(13, 6, 11, dtype)
    ours = chunked(*inputs, chunk, upstream, library)
    assert [x.dtype for x in ours] == [torch.promote_types(dtype, torch.float32), dtype, dtype]
    assert_near(ours, reference(*inputs, upstream), TOLERANCES[dtype])


@pytest.mark.parametrize("chunk", [1, 2, 3, 5], ids=lambda chunk: f"chunk{chunk}")
def test_the_written_out_gradient_is_the_derivative(chunk: int) -> None:
    hidden_TD, head_VD, targets_T = draw(5, 3, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda hidden, head: ChunkedCrossEntropy.apply(hidden, head, targets_T, "torch", chunk), (hidden_TD, head_VD)
    )


@given(
    tokens=st.integers(1, 9),
    dim=st.integers(1, 4),
    vocabulary=st.integers(1, 9),
    chunk=st.integers(1, 10),
    seed=st.integers(0, 999),
)
def test_any_shape_gives_torchs_loss_and_gradients(
    tokens: int, dim: int, vocabulary: int, chunk: int, seed: int
) -> None:
    inputs = draw(tokens, dim, vocabulary, torch.float64, seed)
    for ours, theirs in zip(chunked(*inputs, chunk), reference(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@by_dtype
@pytest.mark.parametrize("learns", ["hidden", "head", "neither"])
def test_only_what_learns_gets_a_gradient(dtype: torch.dtype, learns: str) -> None:
    hidden_TD, head_VD, targets_T = draw(13, 6, 11, dtype)
    expected = dict(zip(("loss", "hidden", "head"), reference(hidden_TD, head_VD, targets_T), strict=True))
    inputs = {"hidden": hidden_TD.detach(), "head": head_VD.detach()}
    if learns != "neither":
        inputs[learns].requires_grad_()
    loss = cross_entropy(inputs["hidden"], inputs["head"], targets_T)
    assert_near([loss.detach()], [expected["loss"]], TOLERANCES[dtype])
    assert loss.requires_grad == (learns != "neither")
    if learns != "neither":
        loss.backward()
        assert_near([inputs[learns].grad], [expected[learns]], TOLERANCES[dtype])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@libraries
@by_dtype
def test_without_a_gradient_the_loss_is_the_same(dtype: torch.dtype, library: str, mode: Any) -> None:
    inputs = draw(13, 6, 11, dtype)
    with_gradient = cross_entropy(*inputs, library)
    with mode():
        without = cross_entropy(*inputs, library)
    assert not without.requires_grad
    assert torch.equal(without, with_gradient.detach())


@libraries
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logits_of_ten_thousand_give_finite_and_right_numbers(dtype: torch.dtype, library: str) -> None:
    hidden_TD = torch.tensor([[100.0], [-100.0], [100.0], [-100.0]], dtype=dtype, requires_grad=True)
    head_VD = torch.tensor([[100.0], [-100.0], [0.0], [100.0]], dtype=dtype, requires_grad=True)
    targets_T = torch.tensor([0, 0, 1, 2])
    ours = chunked(hidden_TD, head_VD, targets_T, 3, library=library)
    assert all(torch.isfinite(x).all() for x in ours)
    theirs = reference(hidden_TD, head_VD, targets_T)
    assert theirs[0] > 5000
    assert_near(ours, theirs, TOLERANCES[dtype])


@pytest.mark.parametrize("strides", ["hidden", "head"])
def test_non_contiguous_inputs_read_the_same(strides: str) -> None:
    inputs = list(draw(13, 6, 11, torch.float64))
    position = ["hidden", "head"].index(strides)
    inputs[position] = inputs[position].detach().T.contiguous().T.requires_grad_()
    assert not inputs[position].is_contiguous()
    loss = cross_entropy(*inputs)
    assert_near([loss.detach(), *torch.autograd.grad(loss, inputs[:2])], reference(*inputs), 1e-12)


def test_autocast_does_not_touch_it() -> None:
    inputs = draw(13, 6, 11, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked(*inputs, 5)
    for one, other in zip(ours, chunked(*inputs, 5), strict=True):
        assert torch.equal(one, other)


def test_the_gradient_of_the_head_is_summed_in_fp32_over_bf16_chunks() -> None:
    """512 chunks of one token whose equal gradients bf16 could not add: its sum stops at 256 of them."""
    hidden_TD = torch.ones(512, 1, dtype=torch.bfloat16, requires_grad=True)
    head_VD = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    ours = chunked(hidden_TD, head_VD, torch.zeros(512, dtype=torch.int64), 1)
    assert_near(ours, reference(hidden_TD, head_VD, torch.zeros(512, dtype=torch.int64)), 2e-2)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that any operator returned, and how many products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numel = max(self.numel, leaf.untyped_storage().nbytes() // leaf.itemsize)
        return result


@libraries
@by_dtype
def test_no_tensor_of_all_logits_is_ever_made(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, library: str
) -> None:
    tokens, dim, vocabulary = 70, 4, 50
    monkeypatch.setattr(module, "CHUNK_LOGITS", 1)  # chunks are of 16 tokens at least
    inputs = draw(tokens, dim, vocabulary, dtype)
    with Largest() as whole:
        functional.cross_entropy(inputs[0] @ inputs[1].T, inputs[2]).backward()
    assert whole.numel >= tokens * vocabulary
    with Largest() as ours:
        cross_entropy(*inputs, library).backward()
    assert 0 < ours.numel <= 16 * vocabulary


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_gradient_only_the_logits_are_multiplied(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", 1)
    inputs = draw(32, 4, 50, torch.float32)
    with mode(), Largest() as ours:
        cross_entropy(*inputs)
    assert ours.products == 2
