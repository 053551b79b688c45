"""Compiled element-wise parts compute what the eager ones do, values and gradients."""

from __future__ import annotations

import shutil

import pytest
import torch

from chronomoe.model.attention import rotary_angles, rotate
from chronomoe.model.elementwise import as_chosen
from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import ACTIVATIONS

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def test_eager_is_the_function_itself() -> None:
    assert as_chosen(rotate, "eager") is rotate


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_a_compiled_activation_equals_the_eager_one(activation: str) -> None:
    join = ACTIVATIONS[activation].join
    x = torch.randn(6, 16, requires_grad=True)
    ours, reference = as_chosen(join, "compiled")(x), join(x)
    torch.testing.assert_close(ours, reference)
    direction = torch.linspace(-1, 1, reference.numel()).view_as(reference)
    gradients = [torch.autograd.grad((y * direction).sum(), x)[0] for y in (ours, reference)]
    torch.testing.assert_close(*gradients)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_rotation_equals_the_eager_one() -> None:
    rotation = rotary_angles(torch.arange(5), 8, 10000.0)
    x_BHSA = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(as_chosen(rotate, "compiled")(x_BHSA, rotation), rotate(x_BHSA, rotation))


@needs_compiler
@pytest.mark.slow
def test_the_gpu_path_of_a_bank_equals_the_processors() -> None:
    """Grouped products and a compiled activation, on the processor: what a GPU runs, where there is none."""
    torch.manual_seed(0)
    bank, rows_E = ExpertBank(4, 16, 32), torch.tensor([5, 0, 9, 2])
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x_PD = torch.randn(16, 16, requires_grad=True)
    found = []
    for kernel, elementwise in (("grouped", "compiled"), ("auto", "eager")):
        bank.kernel, bank.elementwise = kernel, elementwise
        y_PD = bank(x_PD, rows_E)
        direction = torch.linspace(-1, 1, y_PD.numel()).view_as(y_PD)
        found.append([y_PD, *torch.autograd.grad((y_PD * direction).sum(), [x_PD, *bank.parameters()])])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
