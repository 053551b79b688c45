"""Expert choice against brute force, and thresholds that make loads equal without looking ahead.

Axes: T tokens, E experts, K = E columns, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.capacity import capacity_of
from chronomoe.model.expert_choice import (
    ExpertChoiceRouter,
    best_tokens,
    follow_threshold,
    initial_threshold,
)
from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput
from chronomoe.model.sensor import PLAIN_CHANNELS, UNIT
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError

E, FACTOR = 4, 2.0
MakeSettings = Callable[..., ModelSettings]
MakeIds = Callable[..., Tensor]


def random_scores(num_tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(num_tokens, E, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def route(
    logits_TE: Tensor, *, causal: bool, factor: float = FACTOR, threshold: float = 0.25, real_T: Tensor | None = None
) -> RouterOutput:
    router = ExpertChoiceRouter(E, E, factor, causal)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(E))
    return router(logits_TE, torch.full((E,), -threshold), torch.zeros(E), real_T)


def make_model(settings: ModelSettings, *, causal: bool = True, factor: float = FACTOR) -> LanguageModel:
    torch.manual_seed(0)
    router = RouterSettings(kind="expert_choice", gate="softmax", capacity_factor=factor, causal=causal)
    return LanguageModel(settings, router)


def settle(model: LanguageModel) -> None:
    """What training does once per optimizer step."""
    readings, start = {}, PLAIN_CHANNELS
    for probe in model.probes:
        readings[probe.name] = model.sensor_LEC[..., start : start + probe.channels].clone()
        start += probe.channels
    model.sensor_LEC.zero_()
    model.settle(readings)


@given(real=st.lists(st.booleans(), min_size=1, max_size=24), factor=st.sampled_from([0.5, 1.0, 1.3, 2.0, 4.0]))
def test_every_expert_takes_its_best_real_tokens(real: list[bool], factor: float) -> None:
    scores_TE, real_T = random_scores(len(real)), torch.tensor(real)
    taken_TE = best_tokens(scores_TE, factor, real_T)
    slots = min(sum(real), capacity_of(sum(real), E, factor))
    for expert in range(E):
        ranked = sorted((t for t, is_real in enumerate(real) if is_real), key=lambda t: -scores_TE[t, expert])
        assert taken_TE[:, expert].nonzero().flatten().tolist() == sorted(ranked[:slots])


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["all real", "with padding"])
def test_the_output_says_who_took_whom_with_what_weight(causal: bool, padded: bool) -> None:
    logits_TE = torch.randn(20, E, generator=torch.Generator().manual_seed(0))
    real_T = torch.arange(20) % 4 != 0 if padded else None
    routing = route(logits_TE, causal=causal, real_T=real_T)
    scores_TE = logits_TE.softmax(dim=-1)
    assert torch.equal(routing.topk_expert_ids_TK.sort(dim=-1).values, torch.arange(E).expand(20, E))
    assert (routing.scores_TE.gather(1, routing.topk_expert_ids_TK).diff(dim=-1) <= 0).all()
    taken_TE = torch.zeros(20, E, dtype=torch.bool).scatter_(1, routing.topk_expert_ids_TK, routing.kept_TK)
    mixed_TE = torch.zeros(20, E).scatter_(1, routing.topk_expert_ids_TK, routing.topk_weights_TK.detach())
    wanted_TE = scores_TE > 0.25 if causal else best_tokens(scores_TE, FACTOR, real_T)
    if real_T is not None:
        wanted_TE = wanted_TE & real_T[:, None]
    assert torch.equal(taken_TE, wanted_TE)
    torch.testing.assert_close(mixed_TE, scores_TE * wanted_TE)
    assert torch.equal(routing.tokens_per_expert_E, wanted_TE.sum(dim=0))
    assert routing.assigned_TK is routing.kept_TK


def test_plain_loads_are_equal_by_construction_and_some_tokens_get_nothing() -> None:
    routing = route(torch.randn(256, E, generator=torch.Generator().manual_seed(0)), causal=False, factor=1.0)
    assert routing.tokens_per_expert_E.tolist() == [64] * E
    experts_T = routing.kept_TK.sum(dim=-1)
    assert experts_T.min() == 0
    assert experts_T.max() > 1


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("std", [0.1, 0.32, 1.0])
def test_the_first_threshold_is_the_quantile_of_independent_normal_logits(std: float, factor: float) -> None:
    experts = 64
    logits_TE = std * torch.randn(4096, experts, generator=torch.Generator().manual_seed(0))
    share = factor * experts / E / experts
    threshold = initial_threshold(factor * experts / E, experts, std)
    taken = (logits_TE.softmax(dim=-1) > threshold).float().mean()
    assert taken.item() == pytest.approx(share, abs=0.02)


def test_experts_that_take_every_token_have_no_threshold() -> None:
    assert initial_threshold(E, E, 1.0) == 0.0


def test_thresholds_follow_the_mean_quantile_and_stay_where_nothing_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chronomoe.model.expert_choice.HALF_LIFE_STEPS", 3.0)
    threshold_LE = torch.tensor([[0.5, 0.2]])
    reading_LEC = torch.tensor([[[round(0.3 * UNIT) * 10 + round(0.1 * UNIT) * 30, 40], [0, 0]]])
    followed_LE = follow_threshold(threshold_LE, reading_LEC)
    keep = 0.5 ** (1 / 3.0)
    assert followed_LE[0, 0].item() == pytest.approx(keep * 0.5 + (1 - keep) * 0.15, abs=1e-5)
    assert followed_LE[0, 1] == threshold_LE[0, 1]
    assert followed_LE.dtype == torch.float32


def test_loads_converge_to_their_share_and_stay_there(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    # Weights stand still: what is left is the noise of single batches, which averages out.
    model = make_model(tiny_settings(init_std=0.3))
    fair = 32 * 24 * FACTOR / E
    errors_SLE = torch.zeros(32, 2, E)
    for step in range(32):
        output = model(draw_ids(32, 24, seed=step))
        errors_SLE[step] = torch.stack([routing.tokens_per_expert_E for routing in output.routings]) / fair - 1
        settle(model)
    assert errors_SLE[0].abs().max() > 0.25  # nothing was balanced to begin with
    assert errors_SLE[16:].mean(dim=0).abs().max() < 0.05
    assert errors_SLE[16:].square().mean().sqrt() < 0.1
    assert torch.equal(model.sensor_LEC, torch.zeros_like(model.sensor_LEC))


def test_the_threshold_is_bitwise_the_same_however_the_reading_was_summed(
    tiny_settings: MakeSettings, draw_ids: MakeIds
) -> None:
    ids_BS = draw_ids(8, 12)
    thresholds = []
    for order in ([0, 1, 2, 3], [2, 3, 1, 0]):
        model = make_model(tiny_settings(init_std=0.3))
        for part in order:
            model(ids_BS.split(2)[part])
        settle(model)
        thresholds.append(model.threshold_LE.clone())
    assert torch.equal(*thresholds)


def test_only_settling_moves_the_threshold(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    model = make_model(tiny_settings(init_std=0.3))
    before_LE = model.threshold_LE.clone()
    model(draw_ids(4, 12)).logits_BSV.sum().backward()
    model.eval()(draw_ids(4, 12))
    assert torch.equal(model.threshold_LE, before_LE)
    settle(model)
    assert not torch.equal(model.threshold_LE, before_LE)


def test_padding_does_not_move_the_threshold(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    ids_BS = draw_ids(1, 12)
    padded_BS = torch.cat((ids_BS, torch.zeros(1, 8, dtype=torch.int64)), dim=1)
    models = [make_model(tiny_settings(init_std=0.3)) for _ in range(2)]
    models[0](ids_BS)
    models[1](padded_BS, real_BC=torch.arange(20)[None] < 12)
    for model in models:
        settle(model)
    torch.testing.assert_close(models[1].threshold_LE, models[0].threshold_LE)
    before_LE = models[0].threshold_LE.clone()
    models[0](padded_BS, real_BC=torch.zeros(1, 20, dtype=torch.bool))
    settle(models[0])
    assert torch.equal(models[0].threshold_LE, before_LE)


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["all real", "with padding"])
def test_tokens_are_counted_by_the_number_of_experts_that_took_them(
    tiny_settings: MakeSettings, draw_ids: MakeIds, causal: bool, padded: bool
) -> None:
    model = make_model(tiny_settings(init_std=0.3), causal=causal, factor=0.5)
    real_BC = draw_ids(4, 12, seed=2) > 8 if padded else torch.ones(4, 12, dtype=torch.bool)
    output = model(draw_ids(4, 12), real_BC=real_BC if padded else None)
    assert model.probes[0].name == "experts_per_token"
    for layer, routing in enumerate(output.routings):
        experts_T = routing.kept_TK.sum(dim=-1)[real_BC.flatten()].clamp(max=E - 1)
        assert model.sensor_LEC[layer, :, PLAIN_CHANNELS].tolist() == experts_T.bincount(minlength=E).tolist()
        assert model.sensor_LEC[layer, 0, PLAIN_CHANNELS] > 0


@torch.no_grad()
def test_causal_decoding_equals_the_full_forward(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    model, ids_BS = make_model(tiny_settings(init_std=0.3)).eval(), draw_ids(3, 12)
    state = model.new_state(3, 12)
    pieces = [model(part_BS, state=state).logits_BSV for part_BS in ids_BS.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BS).logits_BSV, rtol=0, atol=2e-5)
    assert torch.stack(list(generate(model, ids_BS[:, :4], max_new_tokens=5))).shape == (5, 3)


def test_the_plain_rule_refuses_to_decode_before_anything_is_drawn(
    tiny_settings: MakeSettings, draw_ids: MakeIds
) -> None:
    model = make_model(tiny_settings(), causal=False).eval()
    with pytest.raises(InputError, match=r"router\.causal=true"):
        generate(model, draw_ids(1, 4), max_new_tokens=3)


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
def test_gradients_reach_the_gate_through_the_scores(
    tiny_settings: MakeSettings, draw_ids: MakeIds, causal: bool
) -> None:
    model = make_model(tiny_settings(init_std=0.3), causal=causal)
    model(draw_ids(4, 12)).logits_BSV.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.flatten(1).any(dim=-1).all() if "ffn.router" in name else weight.grad.any(), name
    if model.threshold_LE is not None:
        assert not model.threshold_LE.requires_grad


def test_the_threshold_travels_with_the_weights_in_fp32(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    model = make_model(tiny_settings(init_std=0.3))
    model(draw_ids(4, 12))
    settle(model)
    moved_LE = model.threshold_LE.clone()
    model = model.to(torch.bfloat16)
    assert torch.equal(model.threshold_LE, moved_LE)
    fresh = make_model(tiny_settings(init_std=0.1))
    fresh.load_state_dict(model.float().state_dict())
    assert torch.equal(fresh.threshold_LE, moved_LE)
    plain = make_model(tiny_settings(), causal=False)
    assert plain.threshold_LE is None
    assert "threshold_LE" not in plain.state_dict()


def test_drawing_the_weights_anew_sets_the_first_threshold(tiny_settings: MakeSettings) -> None:
    model = make_model(tiny_settings())
    first_LE = model.threshold_LE.clone()
    model.threshold_LE.zero_()
    model.reset_parameters()
    assert torch.equal(model.threshold_LE, first_LE)
    assert first_LE.unique().item() == pytest.approx(initial_threshold(FACTOR, E, 0.02 * 4.0))


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
@pytest.mark.parametrize("padded", [False, True], ids=["all real", "with padding"])
def test_the_sensor_counts_what_was_taken_and_calls_no_candidate_dropped(
    tiny_settings: MakeSettings, draw_ids: MakeIds, causal: bool, padded: bool
) -> None:
    model = make_model(tiny_settings(init_std=0.3), causal=causal)
    real_BC = draw_ids(4, 12, seed=2) > 8 if padded else None
    output = model(draw_ids(4, 12), real_BC=real_BC)
    counts_LE, mass_LE, dropped_LE = model.sensor_LEC[..., :PLAIN_CHANNELS].unbind(dim=-1)
    for layer, routing in enumerate(output.routings):
        assert torch.equal(counts_LE[layer], routing.tokens_per_expert_E)
        torch.testing.assert_close(mass_LE[layer].sum() / UNIT, routing.topk_weights_TK.sum(), rtol=1e-4, atol=0)
    assert not dropped_LE.any()
