"""RMSNorm with its written-out backward pass against torch's own.

Axes: T tokens, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from chronomoe.model.norm import Normalise, RMSNorm

DIM, EPS = 10, 1e-5
SHAPES = {"one token": (1,), "few tokens": (5,), "tokens": (20,), "batch": (3, 7), "two batches": (2, 3, 4)}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "last axis strided": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other of a larger": lambda x: torch.stack((x, x), dim=-1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[..., :1, :].expand(x.shape),
}


def make_norm(dtype: torch.dtype = torch.float32) -> RMSNorm:
    norm = RMSNorm(DIM, EPS).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, DIM))
    return norm


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(x: Tensor, weight_D: Tensor, direction: Tensor, eps: float = EPS) -> list[Tensor]:
    """Values and gradients by torch, in float64."""
    leaf, weight_D = (t.detach().double().requires_grad_() for t in (x, weight_D))
    y = rms_norm(leaf, (x.shape[-1],), weight_D, eps)
    return [y.detach(), *torch.autograd.grad(y, (leaf, weight_D), direction.double())]


def ours(norm: RMSNorm, x: Tensor, direction: Tensor) -> list[Tensor]:
    leaf = x.detach().requires_grad_()
    y = norm(leaf)
    assert y.shape == x.shape
    return [y.detach(), *torch.autograd.grad(y, (leaf, norm.weight), direction.to(y.dtype))]


@by_shape
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3], ids=["small", "ordinary", "large"])
def test_values_and_gradients_equal_torchs(
    shape: tuple[int, ...], layout: Callable[[Tensor], Tensor], scale: float
) -> None:
    norm, x, direction = make_norm(), layout(scale * draw(*shape, DIM)), layout(draw(*shape, DIM, seed=1))
    for one, other in zip(ours(norm, x, direction), reference(x, norm.weight, direction), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6 * float(other.abs().max()))


@pytest.mark.parametrize("eps", [1e-6, 1e-2, 1.0])
def test_the_written_out_gradient_is_the_derivative(eps: float) -> None:
    inputs = [draw(*shape, seed=seed).double().requires_grad_() for seed, shape in enumerate([(4, 5), (5,)])]
    assert torch.autograd.gradcheck(lambda x_TD, w_D: Normalise.apply(x_TD, w_D, eps, torch.float64), inputs)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 999))
def test_any_shape_gives_torchs_values_and_gradients(tokens: int, dim: int, seed: int) -> None:
    x_TD, weight_D, direction_TD = (draw(*shape, seed=seed) for shape in [(tokens, dim), (dim,), (tokens, dim)])
    inputs = [t.double().requires_grad_() for t in (x_TD, weight_D)]
    y_TD = Normalise.apply(*inputs, EPS, torch.float64)
    found = [y_TD.detach(), *torch.autograd.grad(y_TD, inputs, direction_TD.double())]
    for one, other in zip(found, reference(x_TD, weight_D, direction_TD), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@by_shape
def test_under_autocast_the_output_is_bf16_and_the_gradients_stay_fp32(shape: tuple[int, ...]) -> None:
    norm, x, direction = make_norm(), draw(*shape, DIM), draw(*shape, DIM, seed=1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(norm, x, direction)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32, torch.float32]
    values, *gradients = ours(norm, x, direction.float())
    assert torch.equal(found[0], values.to(torch.bfloat16))
    for one, other in zip(found[1:], gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()))


@pytest.mark.parametrize("rows", [1, 8, 9, 20])
@pytest.mark.parametrize("automatic", [False, True], ids=["fp32", "autocast"])
def test_without_a_gradient_the_values_are_the_same(rows: int, automatic: bool) -> None:
    norm, x_TD = make_norm(), draw(rows, DIM)
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        with_gradient_TD = norm(x_TD).detach()
        with torch.no_grad():
            without_TD = norm(x_TD)
    assert without_TD.dtype == with_gradient_TD.dtype == (torch.bfloat16 if automatic else torch.float32)
    tolerance = 8e-3 if automatic else 1e-6
    torch.testing.assert_close(without_TD, with_gradient_TD, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(
    ("model", "rows"), [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)], ids=["bf16", "mixed"]
)
def test_a_bf16_input_gives_torchs_values_in_its_own_dtype(model: torch.dtype, rows: torch.dtype) -> None:
    norm, x_TD = make_norm(model), draw(20, DIM, dtype=rows)
    y_TD = norm(x_TD)
    assert y_TD.dtype == rows
    expected_TD = rms_norm(x_TD.double(), (DIM,), norm.weight.double(), EPS)
    torch.testing.assert_close(y_TD.double(), expected_TD, rtol=2e-2, atol=2e-2)


def test_a_token_of_zeros_stays_zero_and_its_gradient_is_finite() -> None:
    norm, x_TD = make_norm(), draw(20, DIM)
    x_TD[3] = 0.0
    values_TD, d_x_TD, _ = ours(norm, x_TD, torch.ones(20, DIM))
    assert not values_TD[3].any()
    assert torch.isfinite(d_x_TD).all()
    torch.testing.assert_close(d_x_TD[3], norm.weight.detach() * EPS**-0.5)


def test_the_input_is_left_as_it_was() -> None:
    norm, x_TD = make_norm(), draw(20, DIM)
    before_TD, weight_D = x_TD.clone(), norm.weight.detach().clone()
    direction_TD = torch.ones(20, DIM)
    ours(norm, x_TD, direction_TD)
    assert torch.equal(x_TD, before_TD)
    assert torch.equal(norm.weight, weight_D)
    assert (direction_TD == 1).all()


def test_two_backward_passes_of_one_graph_agree() -> None:
    norm, x_TD = make_norm(), draw(20, DIM).requires_grad_()
    y_TD = norm(x_TD)
    first, second = (torch.autograd.grad(y_TD, x_TD, torch.ones(20, DIM), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_it_is_saved_and_loaded_as_torchs() -> None:
    theirs = nn.RMSNorm(DIM, EPS)
    theirs.load_state_dict(make_norm().state_dict())
    x_TD = draw(20, DIM)
    torch.testing.assert_close(make_norm()(x_TD), theirs(x_TD))
