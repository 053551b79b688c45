"""The chunked loss against torch's on the whole logits, in float64 and in the precisions it is used in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chronomoe.model import cross_entropy as module
from chronomoe.model.cross_entropy import ChunkedCrossEntropy, cross_entropy
from chronomoe.model.products import onednn_multiplies

T, D, V = 37, 8, 50
needs_onednn = pytest.mark.skipif(not onednn_multiplies("cpu", torch.float32), reason="no oneDNN product")
LIBRARIES = ["torch", pytest.param("onednn", marks=needs_onednn)]
PRECISIONS = [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 2e-2)]


def case(dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(T, D, generator=generator, dtype=torch.float64) * scale
    head_VD = torch.randn(V, D, generator=generator, dtype=torch.float64)
    targets_T = torch.randint(V, (T,), generator=generator)
    return hidden_TD.to(dtype).requires_grad_(), head_VD.to(dtype).requires_grad_(), targets_T


def reference(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> list[Tensor]:
    """Loss and both gradients in float64."""
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden_TD, head_VD)]
    loss = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T, targets_T)
    return [loss.detach(), *torch.autograd.grad(3.0 * loss, wide)]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("chunk_logits", [1, V * 20, V * 1000], ids=["16 rows", "20 rows", "all rows"])
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["fp64", "fp32", "bf16"])
def test_loss_and_gradients_are_those_of_the_whole_logits(
    dtype: torch.dtype, tolerance: float, chunk_logits: int, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk_logits)
    hidden_TD, head_VD, targets_T = case(dtype)
    loss = cross_entropy(hidden_TD, head_VD, targets_T, library)
    found = [loss.detach(), *torch.autograd.grad(3.0 * loss, (hidden_TD, head_VD))]
    assert found[1].dtype == found[2].dtype == dtype
    for ours, expected in zip(found, reference(hidden_TD, head_VD, targets_T), strict=True):
        largest = float(expected.abs().max())
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_the_backward_pass_is_the_derivative(chunk: int) -> None:
    hidden_TD, head_VD, targets_T = (tensor[:5] for tensor in case(torch.float64))
    inputs = (hidden_TD.detach().requires_grad_(), head_VD.detach().requires_grad_())
    targets_T = targets_T % 5
    assert torch.autograd.gradcheck(lambda h, w: ChunkedCrossEntropy.apply(h, w, targets_T, "torch", chunk), inputs)


def test_enormous_logits_stay_finite() -> None:
    hidden_TD, head_VD, targets_T = case(torch.float32, scale=1e4)
    loss = cross_entropy(hidden_TD, head_VD, targets_T)
    gradients = torch.autograd.grad(loss, (hidden_TD, head_VD))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in (loss, *gradients))
    torch.testing.assert_close(loss.double(), reference(hidden_TD, head_VD, targets_T)[0], rtol=1e-5, atol=0)


def test_evaluation_reads_the_same_loss_without_gradients() -> None:
    hidden_TD, head_VD, targets_T = case(torch.float32)
    with torch.no_grad():
        alone = cross_entropy(hidden_TD, head_VD, targets_T)
    assert torch.equal(alone, cross_entropy(hidden_TD, head_VD, targets_T).detach())


def test_the_logits_of_all_tokens_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return result

    monkeypatch.setattr(module, "CHUNK_LOGITS", V * 16)
    hidden_TD, head_VD, targets_T = case(torch.float32)
    with Largest() as largest:
        cross_entropy(hidden_TD, head_VD, targets_T).backward()
    assert V * 16 <= largest.numbers < V * T
