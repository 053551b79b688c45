"""The time-mixing layer of RWKV-7 against its equations, one token and one head at a time.

Axes: B batch, S sequence, D dim, H heads, N head width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from chronomoe.model.rwkv import TimeMix, TimeMixOutput, TimeMixState, lora_ranks

EXACT, SINGLE = 1e-10, 1e-5
DIM, WIDTH = 32, 8
first_and_later = pytest.mark.parametrize("first", [True, False], ids=["first", "later"])


def layer_of(first: bool, dim: int = DIM, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> TimeMix:
    """With random numbers in the place of every constant start, so that everything acts."""
    torch.manual_seed(0)
    layer = TimeMix(dim, 1, 4, first=first, head_dim=width)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.25
    return layer.to(dtype)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def state_of(batch: int, dim: int = DIM, width: int = WIDTH, dtype: torch.dtype = torch.float64) -> TimeMixState:
    return TimeMixState(
        draw(batch, dim, seed=8, dtype=dtype), draw(batch, dim // width, width, width, seed=9, dtype=dtype)
    )


def worst(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def flat(output: TimeMixOutput) -> list[Tensor]:
    return [output.out_BSD, *output.state, output.v_first_BSD]


def by_token(
    layer: TimeMix, x_SD: np.ndarray, shift_D: np.ndarray, S_HNN: np.ndarray, v_first_SD: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outputs, last input, last state, v_first: one sequence, from the published equations."""
    p = {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}

    def sigmoid(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    def low_rank(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x @ p[f"{name}_lora.down_DR"], p[f"{name}_lora.up_RD"]

    width = S_HNN.shape[1]
    outs, firsts, S_HNN = [], [], S_HNN.copy()
    for t, x in enumerate(x_SD):
        moved = {j: x + p[f"mix_{j}_D"] * (shift_D - x) for j in "rwkvag"}
        shift_D = x
        r, k0, v = (p[f"{n}.weight"] @ moved[n[0]] for n in ("receptance", "key", "value"))
        low, up = low_rank("decay", moved["w"])
        w = np.exp(-math.exp(-0.5) * sigmoid(p["decay_D"] + np.tanh(low) @ up))
        low, up = low_rank("rate", moved["a"])
        eta = sigmoid(p["rate_D"] + low @ up)
        low, up = low_rank("gate", moved["g"])
        gate = sigmoid(low) @ up
        if v_first_SD is not None:
            low, up = low_rank("residual", moved["v"])
            v = v + (v_first_SD[t] - v) * sigmoid(p["residual_D"] + low @ up)
        firsts.append(v if v_first_SD is None else v_first_SD[t])
        k = k0 * (1 + (eta - 1) * p["key_rate_D"])
        y = np.zeros_like(x)
        for head in range(len(S_HNN)):
            c = slice(head * width, (head + 1) * width)
            kappa = k0[c] * p["key_scale_D"][c]
            kappa = kappa / max(np.linalg.norm(kappa), 1e-12)
            S = S_HNN[head]
            S = np.diag(w[c]) @ S - np.outer(eta[c] * kappa, kappa @ S) + np.outer(k[c], v[c])
            o = S.T @ r[c]
            o = (o - o.mean()) / np.sqrt(o.var() + 64e-5) * p["norm_weight_D"][c] + p["norm_bias_D"][c]
            y[c] = o + (r[c] * k[c] * p["bonus_HN"][head]).sum() * v[c]
            S_HNN[head] = S
        outs.append(p["out.weight"] @ (y * gate))
    return np.array(outs), shift_D, S_HNN, np.array(firsts)


@pytest.mark.parametrize("mode", ["auto", "chunk", "recurrent"])
@first_and_later
def test_the_layer_is_its_equations(first: bool, mode: str) -> None:
    layer, x_BSD, state = layer_of(first), draw(2, 40, DIM), state_of(2)
    v_first_BSD = None if first else draw(2, 40, DIM, seed=2)
    found = flat(layer(x_BSD, state, v_first_BSD, mode=mode))
    for row in range(2):
        given_ = (x[row].numpy() for x in (x_BSD, *state))
        expected = by_token(layer, *given_, None if first else v_first_BSD[row].numpy())
        for one, other in zip(found, expected, strict=True):
            assert worst(one[row], torch.from_numpy(other)) < EXACT


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 89), max_size=4),
    modes=st.lists(st.sampled_from(["auto", "chunk", "recurrent"]), min_size=5, max_size=5),
    first=st.booleans(),
)
def test_any_split_is_the_whole(cuts: list[int], modes: list[str], first: bool) -> None:
    layer, x_BSD = layer_of(first), draw(2, 90, DIM)
    v_first_BSD = None if first else draw(2, 90, DIM, seed=2)
    whole = layer(x_BSD, None, v_first_BSD)
    state, outs = None, []
    for (start, end), mode in zip(pairwise([0, *sorted(set(cuts)), 90]), modes, strict=False):
        v_piece_BSD = None if first else v_first_BSD[:, start:end]
        out, state, _ = layer(x_BSD[:, start:end], state, v_piece_BSD, mode=mode)
        outs.append(out)
    assert worst(torch.cat(outs, dim=1), whole.out_BSD) < EXACT
    assert all(worst(one, other) < EXACT for one, other in zip(state, whole.state, strict=True))


def test_prompt_and_decoding_agree_in_single_precision() -> None:
    layer, x_BSD = layer_of(True, 128, 64, torch.float32), draw(2, 150, 128, dtype=torch.float32)
    with torch.no_grad():
        whole = layer(x_BSD)
        out, state, _ = layer(x_BSD[:, :100])
        outs = [out]
        for t in range(100, 150):
            out, state, _ = layer(x_BSD[:, t : t + 1], state)
            outs.append(out)
    assert worst(torch.cat(outs, dim=1), whole.out_BSD) < SINGLE
    assert worst(state.wkv_BHNN, whole.state.wkv_BHNN) < SINGLE


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_packed_documents_are_separate_documents(mode: str) -> None:
    layer, x_BSD = layer_of(True), draw(1, 90, DIM).requires_grad_()
    borders = [0, 7, 32, 33, 90]
    starts_BS = torch.zeros(1, 90, dtype=torch.bool)
    starts_BS[0, borders[1:-1]] = True
    packed = layer(x_BSD, state_of(1), starts_BS=starts_BS, mode=mode)
    states = [state_of(1), None, None, None]
    alone = [
        layer(x_BSD[:, start:end], state, mode="recurrent")
        for (start, end), state in zip(pairwise(borders), states, strict=True)
    ]
    out_BSD = torch.cat([one.out_BSD for one in alone], dim=1)
    assert worst(packed.out_BSD, out_BSD) < EXACT
    assert all(worst(one, other) < EXACT for one, other in zip(packed.state, alone[-1].state, strict=True))
    given_ = [x_BSD, *layer.parameters()]
    direction_BSD = draw(1, 90, DIM, seed=3)
    found = torch.autograd.grad(packed.out_BSD, given_, direction_BSD)
    expected = torch.autograd.grad(out_BSD, given_, direction_BSD)
    assert all(worst(one, other) < EXACT for one, other in zip(found, expected, strict=True))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), mode=st.sampled_from(["auto", "chunk", "recurrent"]), first=st.booleans())
def test_padding_changes_nothing_wherever_it_stands(seed: int, mode: str, first: bool) -> None:
    layer, x_BSD, state = layer_of(first), draw(1, 60, DIM), state_of(1)
    v_first_BSD = None if first else draw(1, 60, DIM, seed=2)
    valid_BS = torch.rand(1, 60, generator=torch.Generator().manual_seed(seed)) < 0.7
    kept = valid_BS[0]
    padded = layer(x_BSD, state, v_first_BSD, valid_BS=valid_BS, mode=mode)
    alone = layer(x_BSD[:, kept], state, None if first else v_first_BSD[:, kept])
    assert worst(padded.out_BSD[:, kept], alone.out_BSD) < EXACT
    assert all(worst(one, other) < EXACT for one, other in zip(padded.state, alone.state, strict=True))


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
def test_padding_at_the_end_changes_no_bit_of_the_state(mode: str) -> None:
    layer, x_BSD = layer_of(True, dtype=torch.float32), draw(2, 60, DIM, dtype=torch.float32)
    valid_BS = torch.arange(60).expand(2, -1) < 41
    state = layer(x_BSD, state_of(2, dtype=torch.float32), valid_BS=valid_BS, mode=mode).state
    other_BSD = torch.where(valid_BS[..., None], x_BSD, 100.0)
    other = layer(other_BSD, state_of(2, dtype=torch.float32), valid_BS=valid_BS, mode=mode).state
    further = layer(x_BSD, state, valid_BS=torch.zeros(2, 60, dtype=torch.bool), mode=mode).state
    for one, same, later in zip(state, other, further, strict=True):
        assert torch.equal(one, same)
        assert torch.equal(one, later)


@pytest.mark.parametrize("mode", ["chunk", "recurrent"])
@pytest.mark.parametrize("token", [1, 31, 32, 50])
def test_earlier_outputs_are_bitwise_those_without_what_follows(mode: str, token: int) -> None:
    layer, x_BSD = layer_of(True, 128, 64, torch.float32), draw(2, 70, 128, dtype=torch.float32)
    other_BSD = torch.cat((x_BSD[:, :token], draw(2, 70 - token, 128, seed=4, dtype=torch.float32)), dim=1)
    one, other = (layer(x, mode=mode).out_BSD[:, :token] for x in (x_BSD, other_BSD))
    assert torch.equal(one, other)


def test_what_other_rows_hold_changes_no_bit_of_a_row() -> None:
    layer, x_BSD = layer_of(True, dtype=torch.float32), draw(3, 40, DIM, dtype=torch.float32)
    other_BSD = torch.cat((x_BSD[:1], draw(2, 40, DIM, seed=4, dtype=torch.float32)))
    for one, other in zip(flat(layer(x_BSD)), flat(layer(other_BSD)), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("length", [1, 40])
@first_and_later
def test_the_state_stays_fp32_under_half_precision(first: bool, length: int) -> None:
    layer, x_BSD = layer_of(first, 128, 64, torch.float32), draw(2, length, 128, dtype=torch.float32)
    v_first_BSD = None if first else draw(2, length, 128, seed=2, dtype=torch.float32)
    exact = layer(x_BSD, None, v_first_BSD)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x_BSD, None, v_first_BSD)
    half = layer.bfloat16()(x_BSD.bfloat16(), None, None if first else v_first_BSD.bfloat16())
    for output in (mixed, half):
        assert output.out_BSD.dtype == output.state.shift_BD.dtype == torch.bfloat16
        assert output.state.wkv_BHNN.dtype == torch.float32
        assert worst(output.out_BSD, exact.out_BSD) < 0.1
        assert worst(output.state.wkv_BHNN, exact.state.wkv_BHNN) < 0.05


@pytest.mark.parametrize("automatic", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("length", [8, 40])
@first_and_later
def test_every_parameter_gets_a_gradient(first: bool, length: int, automatic: bool) -> None:
    layer, x_BSD = layer_of(first, dtype=torch.float32), draw(2, length, DIM, dtype=torch.float32).requires_grad_()
    v_first_BSD = None if first else draw(2, length, DIM, seed=2, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        layer(x_BSD, None, v_first_BSD).out_BSD.float().square().sum().backward()
    found = dict(layer.named_parameters()) | {"x": x_BSD} | ({} if first else {"v_first": v_first_BSD})
    for name, tensor in found.items():
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert (tensor.grad != 0).any(), name


@first_and_later
def test_gradients_are_those_of_the_recurrence(first: bool) -> None:
    layer, gradients = layer_of(first), []
    v_first_BSD = None if first else draw(2, 70, DIM, seed=2)
    given_ = [x.requires_grad_() for x in (draw(2, 70, DIM), *state_of(2), *layer.parameters())]
    for mode in ("recurrent", "chunk"):
        output = layer(given_[0], TimeMixState(*given_[1:3]), v_first_BSD, mode=mode)
        outputs = [output.out_BSD, output.state.wkv_BHNN]
        gradients.append(torch.autograd.grad(outputs, given_, [draw(*x.shape, seed=3) for x in outputs]))
    assert all(worst(one, other) < EXACT for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(("layer", "num_layers"), [(0, 1), (0, 12), (5, 12), (11, 12)])
def test_initial_values_are_the_published_ones(layer: int, num_layers: int) -> None:
    torch.manual_seed(0)
    dim = 256
    found = {name: p.detach().double() for name, p in TimeMix(dim, layer, num_layers, first=False).named_parameters()}
    q = layer / (num_layers - 1) if num_layers > 1 else 0.0
    s = 1 - layer / num_layers
    expected = {name: torch.empty(dim, dtype=torch.float64) for name in found if name.endswith("_D")}
    for i in range(dim):
        e, u = i / (dim - 1) - 0.5, ((i % 64) - 31.5) / 31.5
        z = u * abs(u)
        for j, power in {"r": 0.2 * s, "g": 0.2 * s, "w": 0.9 * s, "a": 0.9 * s, "k": 0.7 * s, "v": 0.7 * s}.items():
            expected[f"mix_{j}_D"][i] = 1 - (i / dim) ** power
        expected["decay_D"][i] = -5.5 + 6 * (i / (dim - 1)) ** (1 + q**0.3) + 2.5 * z
        expected["rate_D"][i] = -0.19 + 0.3 * z + 0.4 * e
        expected["residual_D"][i] = 0.73 - 0.4 * e
        expected["key_scale_D"][i] = 0.71 - 0.1 * e
        expected["key_rate_D"][i] = 1.02
        expected["norm_weight_D"][i] = ((layer + 1) / num_layers) ** 0.7
        expected["norm_bias_D"][i] = 0.0
    expected["bonus_HN"] = torch.full((4, 64), -0.04, dtype=torch.float64)
    expected["out.weight"] = torch.zeros(dim, dim, dtype=torch.float64)
    gains = {"receptance.weight": 1.0, "key.weight": 0.1, "value.weight": 1.0}
    for name in ("decay", "rate", "residual", "gate"):
        expected[f"{name}_lora.down_DR"] = torch.zeros_like(found[f"{name}_lora.down_DR"])
        gains[f"{name}_lora.up_RD"] = 0.1
    assert found.keys() == expected.keys() | gains.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=name)
    for name, gain in gains.items():
        rows = found[name] @ found[name].T
        torch.testing.assert_close(rows, gain**2 * torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-5)


def test_a_new_layer_does_nothing() -> None:
    assert not TimeMix(128, 0, 2, first=True)(draw(1, 5, 128, dtype=torch.float32)).out_BSD.any()


@pytest.mark.parametrize(
    ("dim", "ranks"),
    [
        (768, (64, 64, 32, 128)),
        (2048, (128, 128, 64, 224)),
        (3072, (128, 128, 96, 288)),
        (6144, (192, 192, 128, 384)),
        (12288, (288, 288, 192, 544)),
    ],
)
def test_ranks_and_parameters_are_the_closed_form(dim: int, ranks: tuple[int, ...]) -> None:
    assert lora_ranks(dim) == ranks
    decay, rate, value, gate = ranks
    with torch.device("meta"):
        counts = [sum(p.numel() for p in TimeMix(dim, 1, 24, first=first).parameters()) for first in (True, False)]
    assert counts[0] == 4 * dim**2 + 2 * dim * (decay + rate + gate) + 13 * dim
    assert counts[1] == counts[0] + 2 * dim * value + dim


def test_products_grow_linearly_with_length() -> None:
    layer = layer_of(True, 128, 64, torch.float32)

    def flops(length: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(draw(1, length, 128, dtype=torch.float32), mode="chunk")
        return counter.get_total_flops()

    assert flops(128) == 2 * flops(64)
    assert flops(512) == 8 * flops(64) > 0


def test_the_state_has_one_size_and_is_left_alone() -> None:
    layer, state = layer_of(True), state_of(2)
    before = [x.clone() for x in state]
    for length in (1, 70):
        after = layer(draw(2, length, DIM), state).state
        assert [x.shape for x in after] == [x.shape for x in state] == [x.shape for x in layer.new_state(2)]
    assert all(torch.equal(one, other) for one, other in zip(state, before, strict=True))


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of the head width"):
        TimeMix(100, 0, 1, first=True)
    with pytest.raises(ValueError, match="mode must be"):
        layer_of(True)(draw(1, 3, DIM), mode="fast")
    with pytest.raises(AssertionError, match="v_first"):
        layer_of(False)(draw(1, 3, DIM))
