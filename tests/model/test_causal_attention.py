"""Attention by products against torch's fused attention, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from chronomoe.model import causal_attention
from chronomoe.model.attention import Attention, Rotation, rotary_angles, rotate
from chronomoe.model.causal_attention import CausalAttention

B, H, G, A = 2, 4, 2, 8


def case(length: int, dtype: torch.dtype) -> tuple[Tensor, Rotation]:
    torch.manual_seed(0)
    qkv_BSNA = torch.randn(B, length, H + 2 * G, A, dtype=torch.float64).to(dtype).requires_grad_()
    return qkv_BSNA, rotary_angles(torch.arange(length), A, 10000.0)


def fused(qkv_BSNA: Tensor, rotation: Rotation) -> Tensor:
    q, k, v = qkv_BSNA.transpose(1, 2).split((H, G, G), dim=1)
    q, k = rotate(q, rotation), rotate(k, rotation)
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)], ids=["fp32", "bf16"])
def test_values_and_gradients_are_those_of_fused_attention(length: int, dtype: torch.dtype, tolerance: float) -> None:
    qkv_BSNA, rotation = case(length, dtype)
    y_BSHA, expected = CausalAttention.apply(qkv_BSNA, *rotation, G), fused(qkv_BSNA.float(), rotation)
    assert y_BSHA.dtype == dtype
    torch.testing.assert_close(y_BSHA.float(), expected, rtol=tolerance, atol=tolerance)
    direction = torch.randn_like(expected)
    (ours,), (reference,) = (torch.autograd.grad((y * direction).sum(), qkv_BSNA) for y in (y_BSHA.float(), expected))
    largest = float(reference.abs().max())
    torch.testing.assert_close(ours.float(), reference.float(), rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
def test_the_backward_pass_is_the_derivative(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 4)
    qkv_BSNA = torch.randn(1, length, 4, 2, dtype=torch.float64, requires_grad=True)
    rotation = [table.double() for table in rotary_angles(torch.arange(length), 2, 10.0)]
    assert torch.autograd.gradcheck(lambda qkv: CausalAttention.apply(qkv, *rotation, 1), qkv_BSNA)


def test_both_kernels_of_the_layer_agree() -> None:
    torch.manual_seed(0)
    layer, x_BSD = Attention(H * A, H, G), torch.randn(B, 20, H * A)
    rotation = rotary_angles(torch.arange(20), A, 10000.0)
    found = []
    for layer.kernel in ("products", "sdpa"):
        found.append(layer(x_BSD, rotation, None, None))
    torch.testing.assert_close(*found)


def test_long_sequences_are_left_to_the_fused_kernel() -> None:
    layer = Attention(H * A, H, G)
    assert layer.multiplies("cpu", causal_attention.LONGEST)
    assert not layer.multiplies("cpu", causal_attention.LONGEST + 1)
    assert not layer.multiplies("cuda", 8)
