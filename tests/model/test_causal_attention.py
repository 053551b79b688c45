"""Causal attention by products against torch's scaled_dot_product_attention and a loop over queries.

Axes: B batch, S sequence, H query heads, G key-value heads, A head width, N = H + 2G, D model dim.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from chronomoe.model import causal_attention
from chronomoe.model.attention import Attention, Rotation, rotary_angles, rotate
from chronomoe.model.causal_attention import LONGEST, CausalAttention, query_blocks, turn

WIDTH = 8
HEADS = {"one head": (1, 1), "own keys": (3, 3), "groups of two": (4, 2), "all share": (4, 1)}
by_heads = pytest.mark.parametrize(("heads", "kv_heads"), HEADS.values(), ids=HEADS.keys())
AROUND_A_BLOCK = [1, 127, 128, 129, 300]
TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


def angles(length: int, width: int = WIDTH) -> Rotation:
    return rotary_angles(torch.arange(length), width, 100.0)


def draw(batch: int, length: int, heads: int, kv_heads: int, dtype: torch.dtype, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(batch, length, heads + 2 * kv_heads, width, generator=generator).to(dtype).requires_grad_()


def by_sdpa(qkv_BSNA: Tensor, rotation: Rotation, kv_heads: int) -> Tensor:
    qk, v = qkv_BSNA.transpose(1, 2).split((qkv_BSNA.shape[2] - kv_heads, kv_heads), dim=1)
    q, k = rotate(qk, rotation).split((qk.shape[1] - kv_heads, kv_heads), dim=1)
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def by_loop(qkv_BSNA: Tensor, rotation: Rotation, kv_heads: int) -> Tensor:
    """The module's equation, one head and one query at a time."""
    batch, length, every, width = qkv_BSNA.shape
    heads, half = every - 2 * kv_heads, width // 2
    first, second = qkv_BSNA.split(half, dim=-1)
    cos_S1a, sin_S1a = rotation.cos_SA[:, None, half:], rotation.sin_SA[:, None, half:]
    turned = torch.cat((first * cos_S1a - second * sin_S1a, first * sin_S1a + second * cos_S1a), dim=-1)
    y_BSHA = torch.zeros(batch, length, heads, width, dtype=qkv_BSNA.dtype)
    for b in range(batch):
        for h in range(heads):
            shared = h // (heads // kv_heads)
            for s in range(length):
                keys = turned[b, : s + 1, heads + shared]
                weights = ((keys @ turned[b, s, h]) * width**-0.5).softmax(dim=0)
                y_BSHA[b, s, h] = weights @ qkv_BSNA[b, : s + 1, heads + kv_heads + shared]
    return y_BSHA


def direction(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
@by_heads
def test_values_are_those_of_the_equation(
    monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int, length: int
) -> None:
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 4)
    qkv_BSNA = draw(2, length, heads, kv_heads, torch.float64).detach()
    ours_BSHA = CausalAttention.apply(qkv_BSNA, *angles(length), kv_heads)
    torch.testing.assert_close(ours_BSHA, by_loop(qkv_BSNA, angles(length), kv_heads))


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
@by_heads
def test_the_written_out_gradient_is_the_derivative(
    monkeypatch: pytest.MonkeyPatch, heads: int, kv_heads: int, length: int
) -> None:
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 4)
    qkv_BSNA, rotation = draw(2, length, heads, kv_heads, torch.float64, width=2), angles(length, width=2)
    assert torch.autograd.gradcheck(lambda qkv: CausalAttention.apply(qkv, *rotation, kv_heads), (qkv_BSNA,))


@pytest.mark.parametrize("length", AROUND_A_BLOCK)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16"])
@by_heads
def test_values_and_gradients_equal_torchs_attention(
    heads: int, kv_heads: int, dtype: torch.dtype, length: int
) -> None:
    qkv_BSNA, rotation = draw(2, length, heads, kv_heads, dtype), angles(length)
    ours_BSHA = CausalAttention.apply(qkv_BSNA, *rotation, kv_heads)
    found = ours_BSHA, torch.autograd.grad(ours_BSHA, qkv_BSNA, direction(ours_BSHA))[0]
    exact = qkv_BSNA.detach().double().requires_grad_()
    theirs_BSHA = by_sdpa(exact, rotation, kv_heads)
    expected = theirs_BSHA.detach(), torch.autograd.grad(theirs_BSHA, exact, direction(ours_BSHA).double())[0]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCES[dtype] * float(other.abs().max()))


@pytest.mark.parametrize("length", AROUND_A_BLOCK)
@pytest.mark.parametrize("automatic", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_the_layers_kernels_are_one_function(kv_heads: int, automatic: bool, length: int) -> None:
    torch.manual_seed(0)
    layer, results = Attention(32, 4, kv_heads), []
    x_BSD = torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for layer.kernel in ("products", "sdpa"):
        assert layer.multiplies("cpu", length) == (layer.kernel == "products")
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            x = x_BSD.bfloat16() if automatic else x_BSD
            y_BSD = layer(x, angles(length), None, None)
        results.append([y_BSD, *torch.autograd.grad(y_BSD, (x_BSD, *layer.parameters()), direction(y_BSD))])
    tolerance = 3e-2 if automatic else 1e-5
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.detach().abs().max()))


@pytest.mark.parametrize("kernel", ["products", "sdpa"])
def test_under_autocast_a_layer_equals_one_cast_beforehand_bit_for_bit(kernel: str) -> None:
    results = []
    for automatic in (True, False):
        torch.manual_seed(0)
        layer = Attention(32, 4, 2)
        layer = layer if automatic else layer.bfloat16()
        layer.kernel = kernel
        x_BSD = torch.randn(2, 130, 32, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            y_BSD = layer(x_BSD, angles(130), None, None)
        d_x_BSD, *d_weights = torch.autograd.grad(y_BSD, (x_BSD, *layer.parameters()), direction(y_BSD))
        assert {g.dtype for g in d_weights} == {torch.float32 if automatic else torch.bfloat16}
        results.append([y_BSD, d_x_BSD, *(g.bfloat16() for g in d_weights)])
    for ours, explicit in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, explicit)


def test_gradients_of_keys_and_values_are_summed_in_fp32_over_bf16_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first of 512 equal tokens, query s asks 1/(s+1): bf16 stops adding when that is small beside the sum."""
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 1)
    length, still = 512, Rotation(torch.ones(512, 2), torch.zeros(512, 2))
    qkv_BSNA = torch.ones(1, length, 3, 2, dtype=torch.bfloat16, requires_grad=True)
    y_BSHA = CausalAttention.apply(qkv_BSNA, *still, 1)
    d_v_A = torch.autograd.grad(y_BSHA, qkv_BSNA, torch.ones_like(y_BSHA))[0][0, 0, -1]
    expected = float((1.0 / torch.arange(1, length + 1, dtype=torch.float64)).sum())
    torch.testing.assert_close(d_v_A.double(), torch.full((2,), expected, dtype=torch.float64), rtol=2**-7, atol=0)


@pytest.mark.parametrize("kernel", ["auto", "products", "sdpa"])
def test_products_take_whole_sequences_up_to_their_longest(kernel: str) -> None:
    layer = Attention(32, 4, 2)
    layer.kernel = kernel
    assert [layer.multiplies("cpu", length) for length in (1, LONGEST, LONGEST + 1)] == [kernel != "sdpa"] * 2 + [False]
    assert layer.multiplies("cuda", 1) == (kernel == "products")


@pytest.mark.parametrize("length", [5, 9])
def test_the_future_has_no_influence_and_gets_no_gradient(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 4)
    qkv_BSNA, rotation = draw(1, length, 4, 2, torch.float32), angles(length)
    y_BSHA = CausalAttention.apply(qkv_BSNA, *rotation, 2)
    for now in range(length):
        moved_BSNA = qkv_BSNA.detach().clone()
        moved_BSNA[:, now + 1 :] += 100.0
        assert torch.equal(CausalAttention.apply(moved_BSNA, *rotation, 2)[:, : now + 1], y_BSHA[:, : now + 1])
        gradient_BSNA = torch.autograd.grad(y_BSHA[:, now].sum(), qkv_BSNA, retain_graph=True)[0]
        assert not gradient_BSNA[:, now + 1 :].any()
        assert gradient_BSNA[:, : now + 1, -2:].any(dim=-1).all()


def test_the_block_length_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv_BSNA, results = draw(2, 9, 4, 2, torch.float64), []
    for block in (1, 2, 4, 8, 9, 100):
        monkeypatch.setattr(causal_attention, "QUERY_BLOCK", block)
        y_BSHA = CausalAttention.apply(qkv_BSNA, *angles(9), 2)
        results.append([y_BSHA, *torch.autograd.grad(y_BSHA, qkv_BSNA, direction(y_BSHA))])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


def test_blocks_cover_every_query_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_attention, "QUERY_BLOCK", 4)
    for length in range(20):
        covered = [query for start, end in query_blocks(length) for query in range(start, end)]
        assert covered == list(range(length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=["fp32", "bf16", "float64"])
def test_turning_is_rotating_and_turning_back_undoes_it(dtype: torch.dtype) -> None:
    x_BSHA, rotation = draw(2, 9, 2, 1, dtype).detach(), angles(9)
    turned_BSHA = turn(x_BSHA, *rotation)
    assert turned_BSHA.dtype == torch.promote_types(dtype, torch.float32)
    wide = x_BSHA.to(turned_BSHA.dtype)
    torch.testing.assert_close(turned_BSHA, rotate(wide.transpose(1, 2), rotation).transpose(1, 2))
    torch.testing.assert_close(turn(turned_BSHA, rotation.cos_SA, -rotation.sin_SA), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_scores_stay_finite(scale: float) -> None:
    qkv_BSNA = (scale * draw(1, 9, 4, 2, torch.float32)).detach().requires_grad_()
    y_BSHA = CausalAttention.apply(qkv_BSNA, *angles(9), 2)
    assert torch.isfinite(y_BSHA).all()
    assert torch.isfinite(torch.autograd.grad(y_BSHA, qkv_BSNA, direction(y_BSHA))[0]).all()


def test_non_contiguous_inputs_and_gradients_read_the_same() -> None:
    qkv_BSNA, rotation = draw(2, 9, 4, 2, torch.float64), angles(9)
    strided_BSNA = qkv_BSNA.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).requires_grad_()
    results = []
    for inputs, layout in ((qkv_BSNA, lambda d: d), (strided_BSNA, lambda d: d.mT.contiguous().mT)):
        y_BSHA = CausalAttention.apply(inputs, *rotation, 2)
        results.append([y_BSHA, *torch.autograd.grad(y_BSHA, inputs, layout(direction(y_BSHA)))])
    torch.testing.assert_close(*results)


def test_two_backward_passes_of_one_graph_agree_and_the_input_is_left_as_it_was() -> None:
    qkv_BSNA = draw(2, 9, 4, 2, torch.float32)
    before_BSNA = qkv_BSNA.detach().clone()
    y_BSHA = CausalAttention.apply(qkv_BSNA, *angles(9), 2)
    d_y_BSHA = direction(y_BSHA)
    first, second = (torch.autograd.grad(y_BSHA, qkv_BSNA, d_y_BSHA, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(qkv_BSNA, before_BSNA)
