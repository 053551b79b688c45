"""flash-linear-attention's kernels beside the PyTorch form: on a GPU where both are, and never otherwise."""

from __future__ import annotations

import pytest
import torch

from chronomoe.model import fla_backend
from chronomoe.model.chunked_wkv import wkv_chunked
from chronomoe.model.fla_backend import agrees, fla_takes, outputs_and_gradients, wkv_by_fla

CPU = torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fla_agrees_on_this_device(dtype: torch.dtype) -> None:
    pytest.importorskip("fla")
    device = torch.device("cuda")
    ours, theirs = (outputs_and_gradients(run, device, dtype, 64) for run in (wkv_chunked, wkv_by_fla))
    for one, other in zip(theirs, ours, strict=True):
        assert float((one - other).norm() / other.norm()) < fla_backend.TOLERANCE


def test_a_processor_does_without() -> None:
    assert not fla_takes(torch.zeros(1, 4, 1, 64, dtype=torch.bfloat16))


def test_what_is_not_installed_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla_backend, "find_spec", lambda _: None)
    assert not agrees.__wrapped__(CPU, torch.float32, 8)


def test_what_agrees_is_used_and_what_differs_or_fails_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fla_backend, "find_spec", lambda _: object())
    monkeypatch.setattr(fla_backend, "wkv_by_fla", wkv_chunked)
    assert agrees.__wrapped__(CPU, torch.float32, 8)
    monkeypatch.setattr(fla_backend, "wkv_by_fla", lambda *x: [1.1 * y for y in wkv_chunked(*x)])
    with pytest.warns(UserWarning, match="differs"):
        assert not agrees.__wrapped__(CPU, torch.float32, 8)
    monkeypatch.setattr(fla_backend, "wkv_by_fla", lambda *x: wkv_chunked(*x, scale=1.0))
    with pytest.warns(UserWarning, match="does not run"):
        assert not agrees.__wrapped__(CPU, torch.float32, 8)
