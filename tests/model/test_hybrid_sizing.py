"""Sizes and operations of hybrid models in closed form, against models built on the meta device and counted products.

Axes: B batch, S sequence, D dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hybrid_models import draw_ids, hybrid_model, hybrid_settings
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_runs import PROJECT

from chronomoe.config import parse
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.lm import LanguageModel
from chronomoe.model.moe import MoELayer
from chronomoe.model.rwkv import lora_ranks
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.model.sizing import parts, size_of, solve_hidden_dim, training_flops

MODELS = sorted(path.stem for path in (PROJECT / "configs" / "model").glob("*.yaml"))
TARGETS = {"cdrmix_1b": 125e6, "cdrmix_4b": 500e6, "cdrmix_40b": 5e9, "cdrmix_200b": 25e9}
MIXTRAL = RouterSettings(kind="mixtral", top_k=2)


def on_meta(model: ModelSettings, router: RouterSettings) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(model, router)


def weight_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def reference(model: ModelSettings, router: RouterSettings) -> int:
    """Section 6 of the reference, for LayerNorm, as many key-value heads as heads, and experts of two matrices."""
    d, layers, experts, hidden = model.dim, model.num_layers, model.num_experts, model.hidden_dim
    attending = model.kinds.count("T")
    recurrent, rank = layers - attending, lora_ranks(d)
    return (
        model.vocab_size * d * (1 if model.tie_embeddings else 2)
        + 4 * d * layers
        + 4 * d
        + 4 * attending * d**2
        + recurrent * (4 * d**2 + 2 * d * (rank.decay + rank.rate + rank.gate) + 13 * d)
        + max(recurrent - 1, 0) * (2 * d * rank.value + d)
        + recurrent * d
        + layers * experts * d
        + 2 * layers * experts * d * hidden
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_file_builds_to_its_closed_form(compose: Callable[..., Any], name: str) -> None:
    config = parse(compose(f"model={name}"))
    size = size_of(config.model, config.router)
    assert weight_of(on_meta(config.model, config.router)) == size.stored
    if name.startswith("cdrmix"):
        unused = config.model.num_experts - config.router.top_k
        assert size.stored == reference(config.model, config.router)
        assert (
            size.active
            == size.stored - 2 * config.model.num_layers * unused * config.model.dim * config.model.hidden_dim
        )


@pytest.mark.parametrize(("name", "target"), TARGETS.items())
def test_an_expert_over_all_blocks_holds_its_target(compose: Callable[..., Any], name: str, target: float) -> None:
    config = parse(compose(f"model={name}"))
    banks = [
        module.experts for module in on_meta(config.model, config.router).modules() if isinstance(module, MoELayer)
    ]
    held = sum(weight_of(bank) for bank in banks) / config.model.num_experts
    assert held == pytest.approx(target, rel=0.005)
    assert config.model.hidden_dim == solve_hidden_dim(config.model, target, 1)


@st.composite
def drawn(draw: Callable[[Any], Any]) -> tuple[ModelSettings, RouterSettings]:
    layers = draw(st.integers(1, 7))
    schedule = draw(st.sampled_from(["top", "interleave", "hybrid", "transformer"]) | st.text("RT", min_size=layers))
    heads = draw(st.sampled_from([1, 2, 4]))
    model = hybrid_settings(
        schedule=schedule if schedule in ("top", "interleave", "hybrid", "transformer") else schedule[:layers],
        num_layers=layers,
        attention_share=str(draw(st.sampled_from([Fraction(n, 4) for n in range(5)]))),
        dim=64 * draw(st.integers(1, 3)),
        hidden_dim=draw(st.integers(1, 40)),
        num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads])),
        num_experts=draw(st.integers(2, 5)),
        num_shared_experts=draw(st.integers(0, 2)),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        norm=draw(st.sampled_from(["rms", "layer"])),
        tie_embeddings=draw(st.booleans()),
        dense=draw(st.booleans()),
    )
    return model, RouterSettings(kind="mixtral", top_k=draw(st.integers(1, 2)))


@given(drawn())
def test_any_model_is_as_large_as_its_closed_form(settings: tuple[ModelSettings, RouterSettings]) -> None:
    model, router = settings
    built = on_meta(model, router)
    size = size_of(model, router)
    assert weight_of(built) == size.stored == sum(part.stored for part in parts(model, router).values())
    unused = Fraction(0 if model.dense else model.num_experts - router.top_k, model.num_experts)
    banks = [module.experts for module in built.modules() if isinstance(module, MoELayer)]
    assert size.active == size.stored - unused * sum(map(weight_of, banks))


@given(settings=drawn(), kind=st.sampled_from(["expert", "stored"]), hidden=st.floats(8, 4000))
def test_the_solver_meets_its_target_to_half_a_multiple(
    settings: tuple[ModelSettings, RouterSettings], kind: str, hidden: float
) -> None:
    model, _ = settings
    matrices = sum((ACTIVATIONS["squared_relu" if k == "R" else model.activation].parts + 1) for k in model.kinds)
    count = 1 if kind == "expert" else model.num_experts
    one_unit = matrices * model.dim * count
    found = solve_hidden_dim(model, hidden * one_unit, count)
    assert found % 8 == 0
    assert abs(found * one_unit - hidden * one_unit) <= 4.001 * one_unit


@pytest.mark.parametrize("units", [-3, 0, 3.9, 4.0])
def test_a_target_that_no_width_reaches_is_refused(units: float) -> None:
    model = hybrid_settings()
    with pytest.raises(ValueError, match="hidden units an expert"):
        solve_hidden_dim(model, units * 2 * 3 * 64, 1)


def flops_of(model: LanguageModel, length: int) -> int:
    """As torch counts them: all matrix products, attention's over the full square."""
    for block in model.blocks:
        if hasattr(block, "attention"):
            block.attention.kernel = "sdpa"
        if isinstance(block.ffn, MoELayer):
            block.ffn.experts.kernel = "looped"  # the others fill up their blocks
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(draw_ids(1, length)).logits_BSV  # noqa: B018
    return int(counter.get_total_flops())


@pytest.mark.parametrize("length", [32, 40, 128])
@pytest.mark.parametrize(
    "overrides", [{}, {"tie_embeddings": True}, {"dense": True}, {"num_shared_experts": 1}], ids=str
)
def test_counted_operations_are_the_closed_form(overrides: dict, length: int) -> None:
    model = hybrid_model(dtype=torch.float32, schedule="RRTR", num_layers=4, **overrides)
    expected = sum(part.flops for part in parts(model.settings, model.router_settings, length).values())
    future = 2 * length * model.settings.dim  # what a causal kernel leaves out of the square, per token
    rounding = length * 4  # of a chunk that is filled up
    assert abs(flops_of(model, length) - length * (expected + future)) <= rounding
    assert training_flops(model.settings, model.router_settings, length) == 3 * expected


def test_a_recurrent_model_costs_a_token_the_same_however_long_the_text() -> None:
    model = hybrid_model(dtype=torch.float32, schedule="RR", num_layers=2)
    assert flops_of(model, 64) == 2 * flops_of(model, 32)
    assert flops_of(model, 256) == 8 * flops_of(model, 32)


def test_attention_grows_with_the_square_and_its_published_coefficient() -> None:
    """Counted full, the second difference over lengths T, 2T, 3T is 4 d 2 T^2 for every attending block."""
    model = hybrid_model(dtype=torch.float32, schedule="RTT", num_layers=3)
    once, twice, thrice = (flops_of(model, length) for length in (32, 64, 96))
    assert thrice - 2 * twice + once == 2 * (2 * 4 * 32**2 * model.settings.dim)


def test_behind_a_window_a_query_costs_what_it_sees() -> None:
    dim = 64
    for length, window in [(32, 32), (32, 100), (128, 32), (4096, 64)]:
        seen = sum(min(position, window) for position in range(1, length + 1)) / length
        with_window, without = (
            parts(hybrid_settings(schedule="T", num_layers=1, attention_window=w), MIXTRAL, n)["attention"].flops
            for w, n in ((window, length), (None, 0))
        )
        assert with_window - without == pytest.approx(4 * seen * dim, abs=2 * dim + 1)
