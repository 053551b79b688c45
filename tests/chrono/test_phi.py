"""Phase coherence against loops over tokens and experts in double precision, and the null of every form.

Axes: S = T tokens, D model dim, E experts, K experts per token, N = T*K assignments, L MoE layers, C columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.phi import (
    MAX_SAMPLED_TOKENS,
    PhiReading,
    decode,
    documented_null,
    layer_documented,
    leave_one_out,
    pair_within_expert,
    phi_probe,
    read_phi,
    rest_of_mixture,
    sample_tokens,
)
from chronomoe.model.dispatch import dispatch_batched, dispatch_grouped
from chronomoe.model.experts import ExpertBank
from chronomoe.model.router import RouterOutput, count_by_expert
from chronomoe.model.sensor import LayerState

D, E = 12, 5


class Forward(NamedTuple):
    """One forward of a layer, as far as phi can see it."""

    y_TKD: Tensor
    ids_TK: Tensor
    weights_TK: Tensor
    kept_TK: Tensor | None = None
    real_T: Tensor | None = None


def draw(tokens: int, top_k: int, *, seed: int = 0, drops: bool = False, padding: bool = False) -> Forward:
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(tokens, E, generator=generator) + torch.linspace(-1, 1, E)
    scores_TK, ids_TK = logits_TE.topk(top_k)
    tilt_ED = torch.randn(E, D, generator=generator)
    y_TKD = torch.randn(tokens, top_k, D, generator=generator) + 0.5 * tilt_ED[ids_TK] + 0.3
    kept_TK = torch.rand(tokens, top_k, generator=generator) > 0.4 if drops else None
    real_T = torch.rand(tokens, generator=generator) > 0.3 if padding else None
    if kept_TK is not None:
        y_TKD = y_TKD * kept_TK[..., None]
    return Forward(y_TKD, ids_TK, scores_TK.softmax(dim=-1), kept_TK, real_T)


def as_state(forward: Forward) -> LayerState:
    y_TKD, ids_TK, weights_TK, kept_TK, real_T = forward
    logits_TE = torch.zeros(len(ids_TK), E)
    flat_N = ids_TK.flatten()
    count_E = count_by_expert(flat_N, torch.ones_like(flat_N), E)
    routing = RouterOutput(ids_TK, weights_TK, logits_TE, logits_TE, count_E, kept_TK=kept_TK)
    mixture_TD = (weights_TK[..., None] * y_TKD).sum(dim=1)
    return LayerState(0, routing, torch.zeros(E), real_T, lambda tokens_S: y_TKD[tokens_S], mixture_TD)


def read(*forwards: Forward) -> PhiReading:
    """The reading of one layer over several micro-batches."""
    return decode(torch.stack([read_phi(as_state(forward)) for forward in forwards]).sum(dim=0)[None])


def cosine_by_hand(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else math.nan


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def by_loop(forward: Forward) -> dict[str, list[float]]:
    """Every form by loops over tokens and experts, from m - w y in double precision."""
    tokens, top_k = forward.ids_TK.shape
    kept = forward.kept_TK if forward.kept_TK is not None else torch.ones(tokens, top_k, dtype=torch.bool)
    real = forward.real_T if forward.real_T is not None else torch.ones(tokens, dtype=torch.bool)
    outputs: list[list[tuple[int, float, list[float]]]] = [[] for _ in range(E)]  # of each expert: token, weight, y
    mixture = {t: [0.0] * D for t in range(tokens) if real[t]}
    partners = {t: int(kept[t].sum()) for t in mixture}
    for t in mixture:
        for k in range(top_k):
            if kept[t, k]:
                w, y = float(forward.weights_TK[t, k]), forward.y_TKD[t, k].double().tolist()
                outputs[int(forward.ids_TK[t, k])].append((t, w, y))
                mixture[t] = [m + w * x for m, x in zip(mixture[t], y, strict=True)]
    total = [sum(column) for column in zip(*mixture.values(), strict=True)]
    found: dict[str, list[float]] = {name: [] for name in PhiReading._fields}
    for rows in outputs:
        pairs = [(y, [m - w * x for m, x in zip(mixture[t], y, strict=True)]) for t, w, y in rows if partners[t] > 1]
        loo = [cosine_by_hand(y, rest) for y, rest in pairs]
        other = [pairs[(i + len(pairs) // 2) % len(pairs)][1] for i in range(len(pairs))]
        swapped = [cosine_by_hand(y, rest) for (y, _), rest in zip(pairs, other, strict=True)]
        own = [sum(column) for column in zip(*([y for _, _, y in rows] or [[0.0] * D]), strict=True)]
        weighted = [
            sum(column) for column in zip(*([[w * x for x in y] for _, w, y in rows] or [[0.0] * D]), strict=True)
        ]
        found["loo_LE"].append(mean(loo))
        found["excess_LE"].append(mean(loo) - mean(swapped) if len(pairs) > 1 else math.nan)
        found["documented_LE"].append(cosine_by_hand(own, total))
        found["cross_token_LE"].append(cosine_by_hand(own, [m - x for m, x in zip(total, weighted, strict=True)]))
        found["tokens_LE"].append(len(rows))
        found["excluded_LE"].append(len(rows) - len(pairs))
    return found


def assert_reads(reading: PhiReading, expected: dict[str, list[float]], atol: float = 2e-6) -> None:
    for name, values in expected.items():
        found_E = getattr(reading, name)[0].double()
        torch.testing.assert_close(
            found_E,
            torch.tensor(values, dtype=torch.float64),
            rtol=0,
            atol=atol,
            equal_nan=True,
            msg=lambda m, n=name: n + m,
        )


@pytest.mark.parametrize("drops", [False, True], ids=["all kept", "some dropped"])
@pytest.mark.parametrize("padding", [False, True], ids=["all real", "with padding"])
@pytest.mark.parametrize("top_k", [1, 2, 3, E])
def test_every_form_equals_a_loop_over_tokens_and_experts(top_k: int, padding: bool, drops: bool) -> None:
    forward = draw(60, top_k, drops=drops, padding=padding)
    reading = read(forward)
    assert_reads(reading, by_loop(forward))
    assert (reading.excluded_LE.sum() > 0) == (drops or top_k == 1)
    assert torch.equal(reading.documented_LE.isfinite(), reading.tokens_LE > 0)


def test_rest_of_the_mixture_is_the_mixture_less_the_expert_without_its_rounding_noise() -> None:
    y_TKD, _, weights_TK, *_ = draw(50, 3)
    exact_TKD = (weights_TK[..., None].double() * y_TKD.double()).sum(dim=1, keepdim=True)
    exact_TKD = exact_TKD - weights_TK[..., None].double() * y_TKD.double()
    torch.testing.assert_close(rest_of_mixture(y_TKD, weights_TK).double(), exact_TKD, rtol=0, atol=1e-6)
    alone_SKD = torch.zeros(1, 2, D)
    alone_SKD[0, 0] = 1 / 3
    assert not rest_of_mixture(alone_SKD, torch.tensor([[0.1, 0.9]]))[0, 0].any()


def test_a_small_partner_is_read_beside_a_large_expert() -> None:
    y_SKD = torch.zeros(1, 2, D)
    y_SKD[0, 0, 0], y_SKD[0, 1, 1] = 1e4, 1e-4  # m - w y in single precision would still say 0; their cosine is 0
    y_SKD[0, 1, 0] = 1e-4
    assert leave_one_out(y_SKD, torch.full((1, 2), 0.5))[0].tolist() == pytest.approx([0.5**0.5] * 2)


def test_identical_experts_read_one_and_the_excess_counts_what_differs_between_tokens() -> None:
    forward = draw(200, 2)
    same = forward._replace(y_TKD=forward.y_TKD[:, :1].expand(-1, 2, -1))
    torch.testing.assert_close(read(same).loo_LE, torch.ones(1, E))
    assert (read(same).excess_LE > 0.5).all()
    constant = forward._replace(y_TKD=torch.ones_like(forward.y_TKD))
    torch.testing.assert_close(read(constant).loo_LE, torch.ones(1, E))
    torch.testing.assert_close(read(constant).excess_LE, torch.zeros(1, E), rtol=0, atol=1e-6)


def test_excess_cancels_a_common_direction_that_leave_one_out_reads() -> None:
    forward = draw(256, 2)
    reading = read(forward._replace(y_TKD=torch.randn(256, 2, D, generator=torch.Generator().manual_seed(3)) + 2.0))
    assert (reading.loo_LE > 0.7).all()
    assert reading.excess_LE.abs().max() < 0.05


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_documented_form_of_orthogonal_fixed_experts_is_the_normalised_gate_mass(top_k: int) -> None:
    forward = draw(200, top_k)
    fixed = forward._replace(y_TKD=torch.eye(E, D)[forward.ids_TK])
    mass_E = torch.zeros(E).index_add(0, fixed.ids_TK.flatten(), fixed.weights_TK.flatten())
    torch.testing.assert_close(read(fixed).documented_LE, documented_null(mass_E)[None], rtol=0, atol=1e-5)
    torch.testing.assert_close(documented_null(torch.full((2, E), 7.0)), torch.full((2, E), E**-0.5))


def test_the_documented_layer_value_weighs_by_assignments_and_skips_inactive_experts() -> None:
    phi_LE = torch.tensor([[0.5, 0.1, float("nan")], [0.2, 0.2, 0.2]])
    psi_L = layer_documented(phi_LE, torch.tensor([[30, 10, 0], [1, 2, 3]]))
    torch.testing.assert_close(psi_L, torch.tensor([0.4, 0.2]))


def test_one_expert_per_token_is_undefined_but_for_the_cross_token_form() -> None:
    forward = draw(100, 1)
    reading = read(forward)
    assert reading.loo_LE.isnan().all()
    assert reading.excess_LE.isnan().all()
    assert torch.equal(reading.excluded_LE, reading.tokens_LE)
    mixture_TD = forward.weights_TK * forward.y_TKD[:, 0]
    for expert in range(E):
        mine_T = forward.ids_TK[:, 0] == expert
        expected = torch.cosine_similarity(forward.y_TKD[mine_T, 0].mean(dim=0), mixture_TD[~mine_T].mean(dim=0), dim=0)
        assert reading.cross_token_LE[0, expert].item() == pytest.approx(expected.item(), abs=1e-5)


def test_pairs_are_other_assignments_of_the_same_expert_half_its_list_away() -> None:
    ids_N = torch.tensor([2, 0, 2, 1, 2, 0, 2, 2])
    usable_N = torch.tensor([True, True, True, True, False, True, True, True])
    partner_N, paired_N = pair_within_expert(ids_N, usable_N, 4)
    assert paired_N.tolist() == [True, True, True, False, False, True, True, True]
    assert partner_N[paired_N].tolist() == [6, 5, 7, 1, 0, 2]


@pytest.mark.parametrize(("tokens", "padding"), [(100, False), (1000, False), (100, True), (1000, True), (300, True)])
def test_sampled_tokens_are_real_distinct_and_evenly_spaced(tokens: int, padding: bool) -> None:
    real_T = torch.rand(tokens, generator=torch.Generator().manual_seed(1)) > 0.4 if padding else None
    token_S, valid_S = sample_tokens(tokens, real_T, torch.device("cpu"))
    numbers = [t for t in range(tokens) if real_T is None or real_T[t]]
    wanted = min(len(numbers), MAX_SAMPLED_TOKENS)
    assert token_S[valid_S].tolist() == [numbers[i * len(numbers) // wanted] for i in range(wanted)]
    assert token_S.max() < tokens


def test_a_batch_of_padding_reads_nothing() -> None:
    forward = draw(40, 2)._replace(real_T=torch.zeros(40, dtype=torch.bool))
    assert not read_phi(as_state(forward)).any()
    assert read(forward).documented_LE.isnan().all()


def test_splitting_a_batch_into_micro_batches_adds_exactly() -> None:
    whole = draw(120, 2, drops=True, padding=True)
    parts = [Forward(*(x[rows] for x in whole)) for rows in (slice(0, 50), slice(50, 51), slice(51, 120))]
    sums_EC = torch.stack([read_phi(as_state(part)) for part in parts])
    whole_EC = read_phi(as_state(whole))
    excess_columns = [3, 4]  # pairs are formed within a forward
    kept_columns = [c for c in range(whole_EC.shape[1]) if c not in excess_columns]
    assert torch.equal(sums_EC.sum(dim=0)[:, kept_columns], whole_EC[:, kept_columns])
    assert torch.equal(sums_EC.flip(0).sum(dim=0), sums_EC.sum(dim=0))


def test_grouped_and_batched_dispatch_read_the_same() -> None:
    torch.manual_seed(0)
    experts = ExpertBank(E, D, 16)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    state = as_state(draw(80, 2))
    x_TD, room = torch.randn(80, D), 80
    grouped = dispatch_grouped(x_TD, state.routing, experts)
    kept_TK = torch.ones(80, 2, dtype=torch.bool)
    boxed = state.routing._replace(kept_TK=kept_TK, capacity=room)
    batched = dispatch_batched(x_TD, boxed, kept_TK, room, experts)
    readings = [
        decode(read_phi(state._replace(routing=routing, outputs_of=way.outputs_of, mixture_TD=way.mixture_TD))[None])
        for routing, way in ((state.routing, grouped), (boxed, batched))
    ]
    for ours, theirs in zip(*readings, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_an_output_that_is_not_finite_counts_as_dropped() -> None:
    forward = draw(60, 2, drops=True)
    broken_TK = torch.zeros(60, 2, dtype=torch.bool)
    broken_TK[7, 0] = broken_TK[20, 1] = True
    y_TKD = forward.y_TKD.masked_fill(broken_TK[..., None], float("nan"))
    kept_TK = forward.kept_TK & ~broken_TK
    clean = forward._replace(y_TKD=forward.y_TKD * kept_TK[..., None], kept_TK=kept_TK)
    assert torch.equal(read_phi(as_state(forward._replace(y_TKD=y_TKD))), read_phi(as_state(clean)))


def test_the_probe_fills_the_channels_it_announces_whatever_the_precision_around_it() -> None:
    forward = draw(300, 2)
    probe = phi_probe(D)
    reading_EC = probe.read(as_state(forward))
    assert reading_EC.shape == (E, probe.channels)
    assert reading_EC.dtype == torch.int64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(probe.read(as_state(forward)), reading_EC)
