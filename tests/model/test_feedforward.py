"""Activations, as they are, written into a place, and differentiated; and the layer around them.

Axes: T tokens, D model dim, F hidden dim.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model.feedforward import ACTIVATIONS, FeedForward
from chronomoe.model.products import keep_working_copy

EQUATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": lambda x: x.chunk(2, -1)[0] * torch.sigmoid(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
    "relu": lambda x: x.where(x > 0, 0.0),
    "squared_relu": lambda x: x.where(x > 0, 0.0) ** 2,
    "gelu": lambda x: x * 0.5 * torch.erfc(-x / 2**0.5),
}
F = 5
by_activation = pytest.mark.parametrize("name", ACTIVATIONS)
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def test_every_activation_has_an_equation_here() -> None:
    assert EQUATIONS.keys() == ACTIVATIONS.keys()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    """A few roundings."""
    return 4 * torch.finfo(dtype).eps


def projected(name: str, dtype: torch.dtype) -> Tensor:
    """What an activation joins, with the places where it bends or saturates."""
    x = normal(7, ACTIVATIONS[name].parts * F, dtype=dtype)
    x[0], x[1] = 0.0, 30.0 * x[1].sign()
    return x


@by_activation
@by_dtype
def test_joining_is_the_equation_also_when_it_is_written_into_a_place(name: str, dtype: torch.dtype) -> None:
    x, place = projected(name, dtype), torch.full((9, F), -7.0, dtype=dtype)
    before = x.clone()
    expected = EQUATIONS[name](x.double())
    ACTIVATIONS[name].join_into(x, place[1:8])
    for found in (ACTIVATIONS[name].join(x), place[1:8]):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance(dtype), atol=tolerance(dtype))
    assert (place[[0, 8]] == -7).all()
    assert torch.equal(x, before)


@by_activation
@by_dtype
def test_the_written_out_gradient_is_autograds_of_the_equation(name: str, dtype: torch.dtype) -> None:
    x, d_hidden = projected(name, dtype), normal(7, F, seed=1, dtype=dtype)
    leaf = x.double().clone().requires_grad_()
    expected_hidden = EQUATIONS[name](leaf)
    expected_d_x = torch.autograd.grad(expected_hidden, leaf, d_hidden.double())[0]
    hidden, d_x = torch.full((7, F), torch.nan, dtype=dtype), torch.full_like(x, torch.nan)
    ACTIVATIONS[name].differentiate_into(x, d_hidden, hidden, d_x)
    for found, expected in ((hidden, expected_hidden.detach()), (d_x, expected_d_x)):
        atol = tolerance(dtype) * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found.double(), expected, rtol=tolerance(dtype), atol=atol)


@by_activation
def test_the_layer_is_its_equation(name: str) -> None:
    torch.manual_seed(0)
    layer, x_TD = FeedForward(6, F, name).double(), normal(7, 6, dtype=torch.float64)
    expected_TD = EQUATIONS[name](x_TD @ layer.gate_up.weight.T) @ layer.down.weight.T
    torch.testing.assert_close(layer(x_TD), expected_TD)


@by_activation
@pytest.mark.parametrize("copies", [False, True], ids=["casts", "working copies"])
def test_under_autocast_it_equals_a_layer_cast_beforehand_bit_for_bit(name: str, copies: bool) -> None:
    results = []
    for automatic in (True, False):
        torch.manual_seed(0)
        layer = FeedForward(6, F, name) if automatic else FeedForward(6, F, name).bfloat16()
        for weight in layer.parameters() if automatic and copies else ():
            keep_working_copy(weight, torch.bfloat16, half_gradient=False)
        x_TD = normal(20, 6, dtype=torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            y_TD = layer(x_TD)
        d_x_TD, *d_weights = torch.autograd.grad(y_TD, (x_TD, *layer.parameters()), torch.ones_like(y_TD))
        assert {d.dtype for d in d_weights} == {torch.float32 if automatic else torch.bfloat16}
        results.append([y_TD, d_x_TD, *(d.bfloat16() for d in d_weights)])
    for ours, explicit in zip(*results, strict=True):
        assert torch.equal(ours, explicit)
