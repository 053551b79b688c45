"""Grouped expert kernels against a plain loop over experts and tokens, values and gradients.

Axes: N assignments sorted by expert, D model dim, F hidden dim, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model.blocked_experts import BlockedExperts
from chronomoe.model.experts import (
    ExpertBank,
    grouped_mm_accepts,
    run_grouped,
    run_looped,
)
from chronomoe.model.feedforward import ACTIVATIONS, Activation
from chronomoe.model.products import onednn_multiplies

DIM, HIDDEN, E = 16, 24, 5
SWIGLU, RELU = ACTIVATIONS["swiglu"], ACTIVATIONS["relu"]


def run_blocked(*inputs: Tensor | Activation) -> Tensor:
    return BlockedExperts.apply(*inputs, "torch")


def run_blocked_by_onednn(*inputs: Tensor | Activation) -> Tensor:
    if not onednn_multiplies("cpu", torch.float32):
        pytest.skip("this torch has no oneDNN product")
    return BlockedExperts.apply(*inputs, "onednn")


LOADS = {
    "uneven": [3, 1, 7, 2, 4],
    "empty experts at both ends": [0, 6, 0, 5, 0],
    "one token": [0, 0, 1, 0, 0],
    "all tokens to the first": [9, 0, 0, 0, 0],
    "all tokens to the last": [0, 0, 0, 0, 9],
    "no tokens": [0, 0, 0, 0, 0],
}
by_load = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())


def bank_and_rows(
    load: list[int], dtype: torch.dtype, dim: int = DIM, hidden: int = HIDDEN
) -> tuple[ExpertBank, Tensor]:
    torch.manual_seed(0)
    bank = ExpertBank(E, dim, hidden)
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return bank.to(dtype), torch.randn(sum(load), dim).to(dtype).requires_grad_()


def token_by_token(x_ND: Tensor, bank: ExpertBank, load: list[int]) -> Tensor:
    """The module's equation, one row at a time."""
    owners = [expert for expert, count in enumerate(load) for _ in range(count)]
    rows = []
    for row_D, expert in zip(x_ND, owners, strict=True):
        gate_FD, up_FD = bank.gate_up_EFD[expert].chunk(2)
        gate_F = gate_FD @ row_D
        rows.append(bank.down_EDF[expert] @ (gate_F * torch.sigmoid(gate_F) * (up_FD @ row_D)))
    return torch.stack(rows) if rows else x_ND.new_zeros(x_ND.shape)


def values_and_gradients(
    kernel: Callable[..., Tensor],
    x_ND: Tensor,
    bank: ExpertBank,
    load: list[int],
    activation: Activation = SWIGLU,
) -> list[Tensor]:
    """Output, and gradients of a weighted sum of it with respect to rows, gate-up and down weights."""
    inputs = (x_ND, bank.gate_up_EFD, bank.down_EDF)
    y_ND = kernel(*inputs, torch.tensor(load), activation)
    direction_ND = torch.linspace(-1, 1, y_ND.numel()).view_as(y_ND).to(y_ND.dtype)
    return [y_ND, *torch.autograd.grad((y_ND * direction_ND).sum(), inputs)]


@by_load
@pytest.mark.parametrize("kernel", [run_looped, run_grouped, run_blocked, run_blocked_by_onednn])
def test_kernels_compute_the_equation_of_every_token(kernel: Callable[..., Tensor], load: list[int]) -> None:
    bank, x_ND = bank_and_rows(load, torch.float32)
    y_ND = kernel(x_ND, bank.gate_up_EFD, bank.down_EDF, torch.tensor(load), SWIGLU)
    torch.testing.assert_close(y_ND, token_by_token(x_ND, bank, load))


@by_load
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kernel", [run_grouped, run_blocked, run_blocked_by_onednn])
def test_fast_kernels_equal_the_loop_in_values_and_gradients(
    kernel: Callable[..., Tensor], load: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    bank, x_ND = bank_and_rows(load, dtype)
    grouped = values_and_gradients(kernel, x_ND, bank, load)
    looped = values_and_gradients(run_looped, x_ND, bank, load)
    for ours, reference in zip(grouped, looped, strict=True):
        assert ours.dtype == dtype
        largest = float(reference.detach().abs().max()) if reference.numel() else 0.0
        torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * largest)


@by_load
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_written_out_backward_is_the_derivative(load: list[int], activation: Activation) -> None:
    bank, x_ND = bank_and_rows([min(count, 3) for count in load], torch.float64, dim=3, hidden=2)
    gate_up_EFD = bank.gate_up_EFD[:, : activation.parts * 2].detach().clone().requires_grad_()
    inputs = (x_ND, gate_up_EFD, bank.down_EDF)
    sizes = torch.tensor([min(count, 3) for count in load])
    assert torch.autograd.gradcheck(lambda *tensors: run_blocked(*tensors, sizes, activation), inputs)


@pytest.mark.parametrize("kernel", [run_grouped, run_blocked, run_blocked_by_onednn])
def test_an_idle_expert_gets_a_zero_gradient_and_a_used_one_does_not(kernel: Callable[..., Tensor]) -> None:
    load = LOADS["empty experts at both ends"]
    bank, x_ND = bank_and_rows(load, torch.float32)
    _, _, gate_up_EFD, down_EDF = values_and_gradients(kernel, x_ND, bank, load)
    for gradient in (gate_up_EFD, down_EDF):
        assert [bool(g.any()) for g in gradient] == [count > 0 for count in load]


def test_non_contiguous_rows_read_the_same() -> None:
    load = LOADS["uneven"]
    bank, x_ND = bank_and_rows(load, torch.float32)
    strided_ND = x_ND.detach().T.contiguous().T.requires_grad_()
    assert not strided_ND.is_contiguous()
    y_ND, strided_y_ND = bank(x_ND, torch.tensor(load)), bank(strided_ND, torch.tensor(load))
    torch.testing.assert_close(strided_y_ND, y_ND)
    dense = torch.autograd.grad(y_ND, x_ND, torch.ones_like(y_ND))
    strided = torch.autograd.grad(strided_y_ND, strided_ND, torch.ones_like(y_ND))
    torch.testing.assert_close(strided, dense)


@pytest.mark.parametrize(
    ("dtype", "hidden", "expected"),
    [
        (torch.float32, 24, "grouped"),
        (torch.bfloat16, 24, "grouped"),
        (torch.float64, 24, "looped"),
        (torch.float32, 22, "looped"),
        (torch.bfloat16, 20, "looped"),
    ],
    ids=["fp32", "bf16", "float64 falls back", "fp32 rows of 88 bytes fall back", "bf16 rows of 40 bytes fall back"],
)
def test_a_gpu_takes_the_grouped_kernel_where_it_exists_and_the_loop_elsewhere(
    dtype: torch.dtype, hidden: int, expected: str
) -> None:
    assert ExpertBank(E, DIM, hidden).kernel_for("cuda", dtype) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_processor_takes_blocks_whatever_the_dtype_and_width(dtype: torch.dtype) -> None:
    load = LOADS["uneven"]
    bank, x_ND = bank_and_rows(load, dtype, hidden=22)
    assert bank.kernel_for("cpu", dtype) == "blocked"
    y_ND = bank(x_ND, torch.tensor(load))
    torch.testing.assert_close(y_ND, token_by_token(x_ND, bank, load), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("width", range(4, 33, 2))
def test_grouped_mm_accepts_what_it_can_run_and_refuses_what_it_cannot(width: int) -> None:
    load = LOADS["uneven"]
    bank, x_ND = bank_and_rows(load, torch.float32, dim=width, hidden=width)
    try:
        run_grouped(x_ND, bank.gate_up_EFD, bank.down_EDF, torch.tensor(load), SWIGLU)
        ran = True
    except RuntimeError:
        ran = False
    assert ran or not grouped_mm_accepts(torch.float32, width, width)


def slots_and_bank(activation: str) -> tuple[Tensor, ExpertBank]:
    torch.manual_seed(0)
    bank = ExpertBank(E, DIM, HIDDEN, activation)
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return torch.randn(E, 4, DIM).requires_grad_(), bank


@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_batched_slots_equal_sorted_rows_in_values_and_gradients(activation: str) -> None:
    x_ECD, bank = slots_and_bank(activation)
    batched_ECD = bank.batched(x_ECD)
    rows_ND = bank(x_ECD.flatten(0, 1), torch.full((E,), 4))
    torch.testing.assert_close(batched_ECD.flatten(0, 1), rows_ND)
    inputs = [x_ECD, *bank.parameters()]
    direction = torch.linspace(-1, 1, rows_ND.numel())
    ours = torch.autograd.grad((batched_ECD.flatten() * direction).sum(), inputs)
    theirs = torch.autograd.grad((rows_ND.flatten() * direction).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@by_load
@pytest.mark.parametrize("kernel", [run_looped, run_grouped, run_blocked])
def test_relu_experts_compute_their_equation(kernel: Callable[..., Tensor], load: list[int]) -> None:
    _, bank = slots_and_bank("relu")
    x_ND = torch.randn(sum(load), DIM, generator=torch.Generator().manual_seed(1))
    y_ND = kernel(x_ND, *bank.weights(torch.float32), torch.tensor(load), RELU)
    owners = [expert for expert, count in enumerate(load) for _ in range(count)]
    rows = [bank.down_EDF[e] @ (bank.gate_up_EFD[e] @ x_D).clamp(min=0) for x_D, e in zip(x_ND, owners, strict=True)]
    torch.testing.assert_close(y_ND, torch.stack(rows) if rows else x_ND)
