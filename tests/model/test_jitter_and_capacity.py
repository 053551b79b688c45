"""What a token-choice router does in training only: noise on its input, and a capacity.

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import TopKRouter
from chronomoe.model.sensor import DROPPED, GATE_MASS, UNIT
from chronomoe.model.settings import ModelSettings, RouterSettings

E, DIM, TOKENS = 4, 16, 64
FIELD = torch.zeros(E), torch.zeros(E)
SWITCH = {"kind": "switch", "gate": "softmax", "top_k": 1}
MakeSettings = Callable[..., ModelSettings]
MakeIds = Callable[..., Tensor]


def make_router(**options: float) -> TopKRouter:
    torch.manual_seed(0)
    return TopKRouter(DIM, E, 1, "selection", "softmax", **options)


def make_tokens() -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(1))


def make_model(settings: ModelSettings, **router: object) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(settings, RouterSettings(**router))


def test_switch_takes_the_most_probable_expert_and_weighs_it_by_its_probability() -> None:
    router, x_TD = make_router(), make_tokens()
    routing = router(x_TD, *FIELD)
    best = (x_TD @ router.gate.weight.T).double().softmax(dim=-1).max(dim=-1)
    assert torch.equal(routing.topk_expert_ids_TK[:, 0], best.indices)
    torch.testing.assert_close(routing.topk_weights_TK[:, 0], best.values.float())


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_jitter_multiplies_what_the_router_sees_by_a_uniform_draw_and_nothing_else(jitter: float) -> None:
    router, x_TD = make_router(jitter=jitter), make_tokens()
    before_TD = x_TD.clone()
    torch.manual_seed(5)
    noise_TD = 1 + jitter * (2 * torch.rand(TOKENS, DIM) - 1)
    torch.manual_seed(5)
    routing = router(x_TD, *FIELD)
    torch.testing.assert_close(routing.logits_TE, (x_TD * noise_TD) @ router.gate.weight.T)
    assert torch.equal(x_TD, before_TD)
    assert noise_TD.min() >= 1 - jitter
    assert noise_TD.max() <= 1 + jitter


def test_one_seed_draws_one_jitter_and_without_it_nothing_is_drawn() -> None:
    router, x_TD = make_router(jitter=0.1), make_tokens()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(router(x_TD, *FIELD).logits_TE)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    for quiet in (router.eval(), make_router()):
        state = torch.get_rng_state()
        quiet(x_TD, *FIELD)
        assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_knows_neither_jitter_nor_capacity() -> None:
    x_TD, plain = make_tokens(), make_router().eval()
    noisy = make_router(jitter=0.5, capacity_factor=0.1).eval()
    for ours, theirs in zip(noisy(x_TD, *FIELD), plain(x_TD, *FIELD), strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("router", [SWITCH, {"kind": "mixtral", "top_k": 2}], ids=["switch", "mixtral"])
@pytest.mark.parametrize("padded", [False, True], ids=["all real", "with padding"])
def test_the_sensor_counts_before_dropping_and_the_dropped_apart(
    tiny_settings: MakeSettings, draw_ids: MakeIds, router: dict[str, object], padded: bool
) -> None:
    model = make_model(tiny_settings(init_std=0.3), capacity_factor=0.5, **router)
    real_BC = draw_ids(4, 12, seed=2) > 8 if padded else torch.ones(4, 12, dtype=torch.bool)
    output = model(draw_ids(4, 12), real_BC=real_BC if padded else None)
    for layer, routing in enumerate(output.routings):
        real_T = real_BC.flatten()
        counts_E, mass_E, dropped_E = model.sensor_LEC[layer].unbind(dim=-1)
        ids_RK, kept_RK = routing.topk_expert_ids_TK[real_T], routing.kept_TK[real_T]
        assert torch.equal(counts_E, ids_RK.flatten().bincount(minlength=E))
        assert torch.equal(dropped_E, ids_RK[~kept_RK].bincount(minlength=E))
        assert dropped_E.sum() > 0
        torch.testing.assert_close(mass_E.sum() / UNIT, routing.topk_weights_TK[real_T].sum(), rtol=1e-4, atol=0)
        assert mass_E[counts_E - dropped_E == 0].sum() == 0
    assert model.sensor_LEC[..., GATE_MASS].dtype == model.sensor_LEC[..., DROPPED].dtype == torch.int64


@torch.no_grad()
def test_decoding_with_a_capacity_equals_the_full_forward(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    settings, ids_BS = tiny_settings(init_std=0.3), draw_ids(3, 12)
    model = make_model(settings, capacity_factor=0.5, **SWITCH).eval()
    state = model.new_state(3, 12)
    pieces = [model(part_BS, state=state).logits_BSV for part_BS in ids_BS.split([5, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BS).logits_BSV, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shared", [0, 1])
def test_a_model_that_drops_learns_through_every_gate_and_expert(
    tiny_settings: MakeSettings, draw_ids: MakeIds, shared: int
) -> None:
    settings = tiny_settings(init_std=0.3, activation="relu", num_shared_experts=shared)
    model = make_model(settings, capacity_factor=1.0, **SWITCH)
    output = model(draw_ids(8, 12))
    cross_entropy(output.logits_BSV.flatten(0, 1), draw_ids(8, 12, seed=2).flatten()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        parts = weight.grad.flatten(1) if ".experts." in name else weight.grad.view(1, -1)
        assert parts.abs().sum(dim=1).gt(0).all(), name
