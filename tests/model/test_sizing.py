"""Sizes against a closed form, without allocating anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.model.sizing import size_of

MIXTRAL_8X7B = {
    "num_layers": 32,
    "num_experts": 8,
    "dim": 4096,
    "hidden_dim": 14336,
    "num_heads": 32,
    "num_kv_heads": 8,
    "vocab_size": 32000,
    "max_seq_len": 32768,
}


def count(model: ModelSettings, experts: int) -> int:
    """Parameters if every layer had `experts` of its experts."""
    head_dim = model.dim // model.num_heads
    attention = 2 * model.dim * model.num_heads * head_dim + 2 * model.dim * model.num_kv_heads * head_dim
    gate = 0 if model.dense else model.dim * model.num_experts
    matrices = 3 if model.activation == "swiglu" else 2
    width = (experts + model.num_shared_experts) * model.hidden_dim
    layer = attention + gate + matrices * model.dim * width + 2 * model.dim
    embeddings = model.vocab_size * model.dim * (1 if model.tie_embeddings else 2)
    return model.num_layers * layer + embeddings + model.dim


def test_mixtral_8x7b_builds_on_meta_with_its_published_sizes() -> None:
    settings = ModelSettings(**MIXTRAL_8X7B)
    size = size_of(settings, RouterSettings(kind="mixtral", top_k=2))
    assert size.stored == count(settings, 8) == 46_702_792_704
    assert size.active == count(settings, 2) == 12_879_925_248


SHAPES = [
    {},
    {"tie_embeddings": True},
    {"dense": True},
    {"num_kv_heads": 4},
    {"num_shared_experts": 2},
    {"num_shared_experts": 1, "dense": True},
    {"activation": "relu"},
    {"activation": "relu", "num_shared_experts": 1},
]


@pytest.mark.parametrize("overrides", SHAPES, ids=str)
@pytest.mark.parametrize("top_k", [1, 2])
def test_sizes_equal_the_closed_form(
    tiny_settings: Callable[..., ModelSettings], overrides: dict[str, object], top_k: int
) -> None:
    settings = tiny_settings(**overrides)
    size = size_of(settings, RouterSettings(kind="mixtral", top_k=top_k))
    assert size.stored == count(settings, top_k if settings.dense else settings.num_experts)
    assert size.active == count(settings, top_k)


def test_a_real_model_has_the_closed_forms_size(tiny_model: Callable[..., LanguageModel]) -> None:
    model = tiny_model()
    size = size_of(model.settings, RouterSettings(kind="mixtral", top_k=2))
    assert size.stored == sum(parameter.numel() for parameter in model.parameters())
    assert size.training_bytes == 16 * size.stored


@pytest.mark.parametrize("factor", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("causal", [True, False])
def test_expert_choice_is_sized_by_its_mean_experts_per_token(
    tiny_settings: Callable[..., ModelSettings], factor: float, causal: bool
) -> None:
    settings = tiny_settings()
    size = size_of(settings, RouterSettings(kind="expert_choice", capacity_factor=factor, causal=causal))
    assert size.stored == count(settings, 4)
    assert size.active == count(settings, 0) + factor * (count(settings, 1) - count(settings, 0))
