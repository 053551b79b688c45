"""What every form of phi reads when experts have nothing in common: simulations against the stated nulls.

Axes: T tokens, D model dim, E experts, F hidden dim, K experts per token, N = T*K assignments, L MoE layers.
"""

from __future__ import annotations

import math
from statistics import mean

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from chronomoe.chrono.phi import (
    cross_token,
    documented,
    excess,
    layer_mean_removed_null,
    leave_one_out,
    rest_of_mixture,
)


@pytest.mark.parametrize("top_k", [2, 4])
def test_leave_one_out_and_excess_read_zero_for_independent_experts(top_k: int) -> None:
    tokens, generator = 4000, torch.Generator().manual_seed(0)
    y_TKD = torch.randn(tokens, top_k, 64, generator=generator)
    ids_N = torch.rand(tokens, 8, generator=generator).topk(top_k).indices.flatten()
    weights_TK = torch.rand(tokens, top_k, generator=generator).softmax(dim=-1)
    loo_TK = leave_one_out(y_TKD, weights_TK)
    rest_ND = rest_of_mixture(y_TKD, weights_TK).flatten(0, 1)
    excess_N = excess(y_TKD.flatten(0, 1), rest_ND, ids_N, loo_TK.flatten(), 8)
    assert loo_TK.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert loo_TK.mean().abs() < 3 * 64**-0.5 / tokens**0.5
    assert excess_N.mean().abs() < 3 * (2 / 64) ** 0.5 / tokens**0.5


def simulate_swiglu(
    num_experts: int, input_mean: float, seed: int, *, by_router: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random SwiGLU experts on RMS-normalised noise around a shared mean, two per token, at random or by a router.

    (outputs [T, 2, D], ids [T, 2], weights [T, 2], constant fraction of the outputs' mean square)
    """
    tokens, dim, hidden = 512, 64, 64
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(tokens, dim, generator=generator) + input_mean * torch.randn(dim, generator=generator)
    x_TD = x_TD / x_TD.square().mean(dim=-1, keepdim=True).sqrt()
    gate_up_EFD = torch.randn(num_experts, 2 * hidden, dim, generator=generator) / dim**0.5
    gate_TEF, up_TEF = torch.einsum("td,efd->tef", x_TD, gate_up_EFD).chunk(2, dim=-1)
    down_EDF = torch.randn(num_experts, dim, hidden, generator=generator)
    y_TED = torch.einsum("tef,edf->ted", silu(gate_TEF) * up_TEF, down_EDF)
    score_TE = torch.rand(tokens, num_experts, generator=generator)
    if by_router:
        score_TE = x_TD @ torch.randn(dim, num_experts, generator=generator)
    ids_TK = score_TE.topk(2).indices
    y_TKD = y_TED.gather(1, ids_TK[..., None].expand(-1, -1, dim))
    fraction = y_TED.mean(dim=0).square().sum() / y_TED.square().sum(dim=-1).mean(dim=0).sum()
    return y_TKD, ids_TK, torch.full((tokens, 2), 0.5), fraction


@pytest.mark.parametrize(("num_experts", "removed", "read_as_documented"), [
    (4, -0.071, 0.487), (8, -0.038, 0.349), (16, -0.022, 0.251), (64, -0.002, 0.118)
])  # fmt: skip
def test_nulls_of_random_swiglu_experts_are_the_measured_ones(
    num_experts: int, removed: float, read_as_documented: float
) -> None:
    for input_mean, expected in ((0.0, 0.0), (1.2, removed)):
        plain, centred, stated, inclusive = [], [], [], []
        for seed in range(4):
            y_TKD, ids_TK, weights_TK, fraction = simulate_swiglu(num_experts, input_mean, seed)
            weighted_TKD = weights_TK[..., None] * y_TKD
            plain.append(leave_one_out(y_TKD, weights_TK).mean().item())
            centre_D = weighted_TKD.sum(dim=1).mean(dim=0)
            centred.append(leave_one_out(y_TKD, weights_TK, centre_D).mean().item())
            stated.append(layer_mean_removed_null(num_experts, fraction.item()))
            zeros_ED = torch.zeros(num_experts, y_TKD.shape[-1])
            output_ED, weighted_ED = (
                zeros_ED.index_add(0, ids_TK.flatten(), rows.flatten(0, 1)) for rows in (y_TKD, weighted_TKD)
            )
            inclusive.append(documented(output_ED, weighted_ED).mean().item())
        assert mean(plain) == pytest.approx(0.0, abs=0.012)
        assert mean(centred) == pytest.approx(expected, abs=0.015)
        assert mean(centred) == pytest.approx(mean(stated), abs=0.02)
        assert mean(inclusive) == pytest.approx(read_as_documented, abs=0.04)


def test_routing_by_the_shared_mean_moves_the_mean_removed_form_far_below_its_null_but_not_the_excess() -> None:
    centred, stated, excesses = [], [], []
    for seed in range(8):
        y_TKD, ids_TK, weights_TK, fraction = simulate_swiglu(8, 3.0, seed, by_router=True)
        centre_D = (weights_TK[..., None] * y_TKD).sum(dim=1).mean(dim=0)
        centred.append(leave_one_out(y_TKD, weights_TK, centre_D).mean().item())
        stated.append(layer_mean_removed_null(8, fraction.item()))
        rest_ND, loo_N = rest_of_mixture(y_TKD, weights_TK).flatten(0, 1), leave_one_out(y_TKD, weights_TK).flatten()
        excesses.append(excess(y_TKD.flatten(0, 1), rest_ND, ids_TK.flatten(), loo_N, 8).nanmean().item())
    assert mean(centred) < -0.2 < -0.12 < mean(stated)
    assert mean(excesses) == pytest.approx(0.0, abs=0.01)


def test_the_cross_token_form_reads_zero_for_independent_experts() -> None:
    generator = torch.Generator().manual_seed(0)
    output_LED = torch.randn(500, 8, 256, generator=generator)
    readings = cross_token(output_LED, output_LED * torch.rand(500, 8, 1, generator=generator))
    assert readings.mean().abs() < 3 * 256**-0.5 / 500**0.5
    assert readings.std().item() == pytest.approx(256**-0.5, rel=0.1)


def test_constant_experts_with_the_layer_mean_removed_read_the_closed_form() -> None:
    ids_TK = torch.combinations(torch.arange(6)).flip(0)
    y_TKD, weights_TK = torch.eye(6)[ids_TK], torch.full((15, 2), 0.5)
    read_TK = leave_one_out(y_TKD, weights_TK, torch.full((6,), 1 / 6))
    torch.testing.assert_close(read_TK, torch.full((15, 2), layer_mean_removed_null(6, 1.0)))
    assert layer_mean_removed_null(6, 1.0) == pytest.approx(-1 / math.sqrt(6 * 5))
