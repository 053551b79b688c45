"""Entropies and their mutual information against their definitions and what an untrained router must read; tallies."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics.confidence import (
    Routing,
    Tally,
    add,
    empty_tally,
    expert_information,
    read,
    read_layers,
    tally,
    token_entropy,
    token_probabilities,
)
from chronomoe.chrono.metrics.load import dead_window_tokens, max_vio

every_gate = pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
seeds = st.integers(0, 999)


def draw(tokens: int, *, seed: int = 0, layers: int = 2, experts: int = 6, spread: float = 1.0) -> list[Routing]:
    """Random logits of every layer, their top 2, and which choices found room."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(tokens, experts, generator=generator) * spread for _ in range(layers)]
    return [(z, z.topk(2).indices, torch.rand(tokens, 2, generator=generator) < 0.8) for z in logits]


@every_gate
@given(seed=seeds, spread=st.floats(0, 80))
def test_probabilities_are_the_normalised_scores(gate: str, seed: int, spread: float) -> None:
    ((logits_TE, _, _),) = draw(5, seed=seed, layers=1, spread=spread)
    scores_TE = logits_TE.double().exp() if gate == "softmax" else logits_TE.double().sigmoid()
    expected_TE = scores_TE / scores_TE.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(token_probabilities(logits_TE, gate), expected_TE)


@every_gate
def test_extreme_logits_still_give_probabilities(gate: str) -> None:
    logits_TE = torch.tensor([[-2000.0, -2000.0, -2001.0], [2000.0, 0.0, -2000.0], [1.0, -math.inf, 1.0]])
    probabilities_TE = token_probabilities(logits_TE, gate)
    torch.testing.assert_close(probabilities_TE.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    assert 0 < token_entropy(probabilities_TE) < 1


@every_gate
@given(seed=seeds, tokens=st.integers(1, 8), spread=st.floats(0, 60))
def test_information_is_the_mean_divergence_from_the_mean_and_never_negative(
    gate: str, seed: int, tokens: int, spread: float
) -> None:
    ((logits_TE, _, _),) = draw(tokens, seed=seed, layers=1, spread=spread)
    p_TE = token_probabilities(logits_TE, gate)
    divergence_T = (torch.special.xlogy(p_TE, p_TE) - torch.special.xlogy(p_TE, p_TE.mean(dim=0))).sum(dim=-1)
    information = expert_information(p_TE)
    assert 0 <= information <= math.log(6) + 1e-12
    torch.testing.assert_close(information, divergence_T.mean(), rtol=0, atol=1e-12)


def test_information_reads_zero_for_one_distribution_and_ln_experts_for_balanced_certainty() -> None:
    constant_TE = token_probabilities(torch.randn(1, 8, generator=torch.Generator().manual_seed(0))).expand(1000, 8)
    assert expert_information(constant_TE) == pytest.approx(0, abs=1e-12)
    certain_TE = torch.eye(8, dtype=torch.float64).repeat(5, 1)
    assert expert_information(certain_TE) == pytest.approx(math.log(8))
    assert token_entropy(certain_TE) == 0
    assert token_entropy(torch.full((3, 8), 1 / 8)) == pytest.approx(1)


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
def test_an_untrained_router_reads_its_null(spread: float) -> None:
    ((logits_TE, _, _),) = draw(20_000, layers=1, experts=8, spread=spread)
    p_TE = token_probabilities(logits_TE)
    lost = spread**2 * (1 - 1 / 8) / 2
    assert expert_information(p_TE) == pytest.approx(lost, rel=0.15)
    assert 1 - token_entropy(p_TE) == pytest.approx(lost / math.log(8), rel=0.15)


def assert_same(first: Tally, second: Tally) -> None:
    for name, a, b in zip(Tally._fields, first, second, strict=True):
        assert a.dtype == b.dtype, name
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 if a.is_floating_point() else 0, msg=name)


@every_gate
@given(seed=seeds, cut=st.integers(0, 30))
def test_tallies_of_two_batches_add_up_to_the_tally_of_both(gate: str, seed: int, cut: int) -> None:
    whole = draw(30, seed=seed)
    parts = [[(z[part], ids[part], kept[part]) for z, ids, kept in whole] for part in (slice(cut), slice(cut, None))]
    first, second = (tally(part, gate=gate) for part in parts)
    assert_same(add(first, second), tally(whole, gate=gate))
    assert_same(add(empty_tally(2, 6), first), first)


@given(seed=seeds)
def test_padding_counts_for_nothing_whatever_it_holds(seed: int) -> None:
    whole = draw(12, seed=seed)
    real_T = torch.rand(12, generator=torch.Generator().manual_seed(seed)) < 0.6
    for logits_TE, _, _ in whole:
        logits_TE[~real_T] = math.nan
    assert_same(tally(whole, real_T), tally([(z[real_T], ids[real_T], kept[real_T]) for z, ids, kept in whole]))


def test_a_tally_reads_what_all_tokens_at_once_read() -> None:
    layers = draw(200)
    read_off = read_layers(add(tally([tuple(x[:70] for x in layer) for layer in layers]),  # type: ignore[misc]
                               tally([tuple(x[70:] for x in layer) for layer in layers])))  # type: ignore[misc] # fmt: skip
    for layer, (logits_TE, ids_TK, kept_TK) in enumerate(layers):
        p_TE = token_probabilities(logits_TE)
        counts_E = ids_TK.flatten().bincount(minlength=6)
        share_E = counts_E.double() / 400
        expected: dict[str, Tensor] = {
            "max_vio": max_vio(counts_E),
            "load_entropy": -(share_E * share_E.log()).sum() / math.log(6),
            "token_entropy": token_entropy(p_TE),
            "expert_information": expert_information(p_TE),
            "dead_expert_frac": torch.tensor(0.0),
            "dropped_frac": 1 - kept_TK.double().mean(),
        }
        assert read_off.keys() == expected.keys()
        for name, value in expected.items():
            assert read_off[name][layer].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-9), name


def test_what_is_logged_is_the_mean_over_layers_under_the_key_of_validation() -> None:
    total = tally(draw(100))
    values = read(total)
    assert set(values) == {
        *("val/max_vio", "val/load_entropy", "val/token_entropy"),
        *("val/expert_information", "val/dead_expert_frac", "val/dropped_frac"),
    }
    for name, value_L in read_layers(total).items():
        assert values[f"val/{name}"].shape == ()
        assert values[f"val/{name}"] == value_L.mean()


def test_loads_are_counted_before_dropping_and_an_absent_mask_drops_nothing() -> None:
    layers = draw(100)
    kept, unknown = tally(layers), tally([(z, ids, None) for z, ids, _ in layers])
    assert torch.equal(kept.counts_LE, unknown.counts_LE)
    assert (kept.dropped_L > 0).all()
    assert unknown.dropped_L.tolist() == [0, 0]


def test_a_candidate_that_was_never_assigned_is_neither_load_nor_dropped() -> None:
    """Expert choice lists all experts of a token and takes some."""
    logits_TE = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    ids_TK = logits_TE.argsort(dim=-1, descending=True)
    assigned_TK = torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    total = tally([(logits_TE, ids_TK, assigned_TK, assigned_TK)])
    assert total.counts_LE[0].tolist() == ids_TK[assigned_TK].bincount(minlength=4).tolist()
    assert total.dropped_L.tolist() == [0]
    full = tally([(logits_TE, ids_TK, assigned_TK & (ids_TK > 0), assigned_TK)])
    assert torch.equal(full.dropped_L, total.counts_LE[:, 0])


def test_no_tokens_read_as_not_a_number_and_too_few_cannot_tell_the_dead() -> None:
    assert all(value.isnan() for value in read(empty_tally(2, 6)).values())
    window = dead_window_tokens(6, 2)
    for tokens in (window - 1, window):
        logits_TE = torch.tensor([3.0, 2.0, 0.0, 0.0, 0.0, 0.0]).expand(tokens, 6)
        dead = read(tally([(logits_TE, logits_TE.topk(2).indices, None)]))["val/dead_expert_frac"]
        assert dead.isnan() if tokens < window else dead == pytest.approx(4 / 6)
