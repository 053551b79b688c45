"""RMSNorm against torch's, values and gradients."""

from __future__ import annotations

import pytest
import torch

from chronomoe.model.norm import Normalise, RMSNorm


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_values_and_gradients_are_torchs(strided: bool) -> None:
    torch.manual_seed(0)
    ours = RMSNorm(16, 1e-5)
    torch.nn.init.normal_(ours.weight)
    x = torch.randn(3, 5, 16)
    x = (x.transpose(0, 1) if strided else x).requires_grad_()
    direction = torch.randn_like(x)
    found, expected = ours(x), torch.nn.functional.rms_norm(x, (16,), ours.weight, 1e-5)
    torch.testing.assert_close(found, expected)
    for ours_d, expected_d in zip(
        torch.autograd.grad((found * direction).sum(), (x, ours.weight)),
        torch.autograd.grad((expected * direction).sum(), (x, ours.weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours_d, expected_d, rtol=1e-4, atol=1e-5)


def test_the_backward_pass_is_the_derivative() -> None:
    inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,)))
    assert torch.autograd.gradcheck(lambda x, w: Normalise.apply(x, w, 1e-5, torch.float64), inputs)


def test_under_autocast_the_output_is_rounded_once_and_gradients_stay_wide() -> None:
    norm, x = RMSNorm(16, 1e-5), torch.randn(4, 16, requires_grad=True)
    plain = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = norm(x)
    assert torch.equal(rounded, plain.bfloat16())
    d_x, d_weight = torch.autograd.grad(rounded.sum(), (x, norm.weight))
    assert d_x.dtype == d_weight.dtype == torch.float32


def test_few_rows_without_a_gradient_read_the_same() -> None:
    norm, x = RMSNorm(16, 1e-5), torch.randn(2, 16)
    with torch.no_grad():
        alone = norm(x)
    torch.testing.assert_close(alone, norm(x).detach())
