"""A reading shows what the routers did: clean logits of the gate, the family's distribution, the field beside it.

Axes: S tokens, L MoE layers, E experts.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from session_models import FAMILIES, build, made_text
from torch import nn

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import RouterSettings
from chronomoe.session.reading import Reading, check_readable, read
from chronomoe.session.routing_signals import entropy
from chronomoe.settings import InputError

by_family = pytest.mark.parametrize("family", FAMILIES)


def read_text(model: LanguageModel, ids: list[int]) -> Reading:
    return read(model, ids, model.new_state(1))


def heard_logits(model: LanguageModel, ids: list[int]) -> np.ndarray:
    """W_g h from what each router's gate was given, [S, L, E]."""
    heard: list[torch.Tensor] = []
    gates = [module.router.gate for module in model.modules() if hasattr(module, "router")]
    routers = [module.router for module in model.modules() if hasattr(module, "router")]
    hooks = [r.register_forward_pre_hook(lambda module, args: heard.append(args[0].detach())) for r in routers]
    read_text(model, ids)
    for hook in hooks:
        hook.remove()
    z = [h.double() @ gate.weight.double().T for h, gate in zip(heard, gates, strict=True)]
    return torch.stack(z, dim=1).detach().numpy()


@by_family
def test_router_logits_are_the_gates_product_with_what_it_was_given(family: str) -> None:
    model, ids = build(family), made_text(30)
    nn.init.normal_(model.expert_bias_LE)  # of which they know nothing
    found = read_text(model, ids).router_logits_SLE
    assert found.shape == (30, model.settings.num_moe_layers, model.settings.num_experts)
    np.testing.assert_allclose(found, heard_logits(model, ids), atol=1e-5)


@by_family
def test_token_by_token_reads_what_one_forward_reads(family: str) -> None:
    model, ids = build(family), made_text(40)
    whole, state = read_text(model, ids), model.new_state(1)
    for s, token in enumerate(ids):
        one = read(model, [token], state)
        np.testing.assert_allclose(one.router_logits_SLE[0], whole.router_logits_SLE[s], atol=1e-4)
        np.testing.assert_allclose(one.logits_SV[0], whole.logits_SV[s], atol=1e-3)
        np.testing.assert_allclose(one.hidden_SD[0], whole.hidden_SD[s], atol=1e-4)


@by_family
def test_the_head_gives_the_logits_from_the_hidden_state(family: str) -> None:
    model = build(family)
    found = read_text(model, made_text(20))
    expected_SV = torch.from_numpy(found.hidden_SD) @ model.head.weight.T.detach()
    torch.testing.assert_close(found.logits_SV, expected_SV, atol=1e-4, rtol=1e-4)


@by_family
def test_distributions_are_the_familys(family: str) -> None:
    model = build(family)
    found = read_text(model, made_text(30))
    z_SLE = torch.from_numpy(found.router_logits_SLE)
    scores_SLE = z_SLE.sigmoid() if family == "deepseek" else z_SLE.exp()
    expected_SLE = scores_SLE / scores_SLE.sum(dim=-1, keepdim=True)
    np.testing.assert_allclose(found.probabilities_SLE, expected_SLE, rtol=1e-9)
    Hn_SL = entropy(found.probabilities_SLE) / math.log(model.settings.num_experts)
    assert ((Hn_SL >= 0) & (Hn_SL <= 1)).all()
    top_k = model.router_settings.top_k
    likeliest = np.sort(np.argsort(found.probabilities_SLE, axis=-1)[..., -top_k:], axis=-1)
    assert np.array_equal(likeliest, np.sort(found.expert_ids_SLK, axis=-1))


@by_family
def test_weights_in_half_precision_still_give_logits_in_single(family: str) -> None:
    model = build(family).to(torch.bfloat16)
    found = read_text(model, made_text(30))
    as_half = torch.from_numpy(found.router_logits_SLE).to(torch.bfloat16).double().numpy()
    assert (as_half != found.router_logits_SLE).mean() > 0.9
    assert found.logits_SV.dtype == torch.float32
    np.testing.assert_allclose(found.probabilities_SLE.sum(axis=-1), 1.0)


@by_family
def test_a_neutral_field_leaves_the_effective_distribution_clean(family: str) -> None:
    found = read_text(build(family), made_text(20))
    np.testing.assert_allclose(found.effective_SLE, found.probabilities_SLE, rtol=1e-6)


@by_family
def test_a_field_shows_in_the_first_layers_effective_distribution_and_not_in_its_clean_one(family: str) -> None:
    model, ids = build(family), made_text(30)
    off = read_text(model, ids)
    nn.init.normal_(model.expert_bias_LE, generator=torch.Generator().manual_seed(0))
    on = read_text(model, ids)
    assert np.array_equal(on.router_logits_SLE[:, 0], off.router_logits_SLE[:, 0])
    assert np.array_equal(on.probabilities_SLE[:, 0], off.probabilities_SLE[:, 0])
    assert not np.allclose(on.effective_SLE[:, 0], off.effective_SLE[:, 0])
    assert not np.array_equal(on.expert_ids_SLK[:, 0], off.expert_ids_SLK[:, 0])
    assert not np.allclose(on.router_logits_SLE[:, 1], off.router_logits_SLE[:, 1])
    top_k = model.router_settings.top_k
    chosen = np.sort(np.argsort(on.effective_SLE[:, 0], axis=-1)[:, -top_k:], axis=-1)
    agreement = (chosen == np.sort(on.expert_ids_SLK[:, 0], axis=-1)).mean()
    assert agreement > (0.8 if family in ("deepseek", "switch") else 0.999)  # scores below 0 are no probabilities


def test_models_without_a_distribution_of_a_tokens_own_are_refused() -> None:
    choosing = RouterSettings(kind="expert_choice", gate="softmax", capacity_factor=2.0)
    with pytest.raises(InputError, match=r"router\.kind=expert_choice"):
        check_readable(LanguageModel(build("mixtral").settings, choosing))
    with pytest.raises(InputError, match=r"model\.dense=true"):
        check_readable(build("mixtral", dense=True))
    with pytest.raises(InputError, match=r"router\.top_k=2 sends every token to all 2"):
        check_readable(build("mixtral", num_experts=2))
