"""The published laws: hand-computed steps, their limits, and what they do to a plant that stands still.

The plant: T tokens with fixed normal scores, the top-k of scores plus bias, and nothing that learns. There a law's
gain, its ripple and its speed are known. The closed loop then steers a tiny language model.

Axes: T tokens, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.chrono.metrics.load import max_vio
from chronomoe.chrono.observation import Observation
from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import TopKRouter
from chronomoe.model.sensor import LayerState, read_layer

MakeSettings = Callable[..., ChronoSettings]
Observe = Callable[..., Observation]
COUNTS = torch.tensor([[9, 4, 2, 1]])
BY_COUNTS = ["sign", "centered_sign", "proportional", "smebu"]


def first_bias(settings: ChronoSettings, observation: Observation) -> Tensor:
    layers, experts = observation.tokens_per_expert_LE.shape
    return Chronovisor(settings, layers, experts).tick(observation).bias_LE


@pytest.mark.parametrize(
    ("law", "overrides", "expected"),
    [
        ("sign", {"rate": 0.1}, [-0.1, 0.0, 0.1, 0.1]),
        ("centered_sign", {"rate": 0.1}, [-0.125, -0.025, 0.075, 0.075]),
        ("proportional", {"rate": 0.1}, [-0.125, 0.0, 0.05, 0.075]),
        ("smebu", {"rate": 0.1, "slope": 2.0, "momentum": 0.5}, [-0.05783, -0.00850, 0.02958, 0.03676]),
    ],
)
def test_the_first_step_is_the_one_computed_by_hand(
    law: str, overrides: dict[str, float], expected: list[float], law_settings: MakeSettings, observe: Observe
) -> None:
    bias_LE = first_bias(law_settings(law, **overrides), observe(COUNTS))
    torch.testing.assert_close(bias_LE, torch.tensor([expected]), rtol=0, atol=5e-6)


def test_smebu_remembers_its_last_correction(law_settings: MakeSettings, observe: Observe) -> None:
    controller = Chronovisor(law_settings("smebu", rate=0.1, slope=2.0, momentum=0.5), 1, 4)
    first_LE = controller.tick(observe(COUNTS)).bias_LE  # half a correction: m = d/2
    fair_LE = controller.tick(observe(torch.full((1, 4), 4))).bias_LE  # no correction: m = d/4
    torch.testing.assert_close(fair_LE, 1.5 * first_LE)


def test_sign_and_centered_sign_differ_by_a_constant_of_each_layer(
    law_settings: MakeSettings, random_observations: Callable[..., list[Observation]]
) -> None:
    free, centred = (Chronovisor(law_settings(law, rate=0.01), 3, 6) for law in ("sign", "centered_sign"))
    for observation in random_observations(20):
        free_LE, centred_LE = free.tick(observation).bias_LE, centred.tick(observation).bias_LE
    torch.testing.assert_close(free_LE - free_LE.mean(-1, keepdim=True), centred_LE)
    assert centred_LE.mean(dim=-1).abs().max() < 1e-7
    assert free_LE.mean(dim=-1).abs().max() > 1e-3  # drifts


def test_smebu_is_the_centred_sign_law_when_steep_and_the_proportional_law_when_gentle(
    law_settings: MakeSettings, random_observations: Callable[..., list[Observation]]
) -> None:
    for observation in random_observations(3):
        steep_LE = first_bias(law_settings("smebu", rate=0.1, slope=1e6, momentum=0.0), observation)
        torch.testing.assert_close(steep_LE, first_bias(law_settings("centered_sign", rate=0.1), observation))
        gentle_LE = first_bias(law_settings("smebu", rate=10.0, slope=1e-3, momentum=0.0), observation)
        torch.testing.assert_close(
            gentle_LE, first_bias(law_settings("proportional", rate=0.01), observation), rtol=1e-4, atol=1e-7
        )


@pytest.mark.parametrize("law", BY_COUNTS)
def test_before_the_start_step_a_law_only_watches_and_then_starts_afresh(
    law: str, law_settings: MakeSettings, observe: Observe
) -> None:
    late = Chronovisor(law_settings(law, start_step=3), 1, 4)
    fields = [late.tick(observe(COUNTS)).bias_LE for _ in range(4)]
    assert not torch.stack(fields[:3]).any()
    assert torch.equal(fields[3], first_bias(law_settings(law), observe(COUNTS)))


@pytest.mark.parametrize("form", ["exact", "histogram"])
def test_an_average_keeps_its_part_of_the_bias_before(form: str, law_settings: MakeSettings, observe: Observe) -> None:
    observation = observe(COUNTS)
    found_LE = first_bias(law_settings("quantile", form=form), observation)
    kept = Chronovisor(law_settings("quantile", form=form, ema=0.75), 1, 4)
    torch.testing.assert_close(kept.tick(observation).bias_LE, 0.25 * found_LE)
    if form == "exact":  # what a histogram says depends on the bias it was counted under
        torch.testing.assert_close(kept.tick(observation).bias_LE, (0.25 + 0.75 * 0.25) * found_LE)


def plant(tokens: int, experts: int, spread: float) -> Tensor:
    """Standard normal scores; `spread` is the standard deviation of the experts' popularity."""
    generator = torch.Generator().manual_seed(0)
    scores_TE = torch.randn(tokens, experts, generator=generator)
    return scores_TE + spread * torch.randn(experts, generator=generator)


def steer_plant(
    settings: ChronoSettings, logits_TE: Tensor, top_k: int, updates: int, gate: str = "topk_softmax"
) -> Tensor:
    """MaxVio before each update."""
    experts = logits_TE.shape[-1]
    controller = Chronovisor(settings, 1, experts)
    router = TopKRouter(experts, experts, top_k, "selection", gate)
    router.gate.weight.data = torch.eye(experts)
    probes = LAWS[settings.law].probes(settings, top_k)
    bias_E, violations = torch.zeros(experts), []
    for _ in range(updates):
        with torch.no_grad():
            routing = router(logits_TE, bias_E, torch.zeros(experts))
        state = LayerState(0, routing, bias_E, None, lambda numbers_S: logits_TE[numbers_S], logits_TE)
        reading_EC = read_layer(state, probes)
        counts_LE = reading_EC[None, :, 0]
        readings = {probes[0].name: reading_EC[None, :, 3:]} if probes else {}
        bias_E = controller.tick(Observation(counts_LE, counts_LE.double(), None, readings)).bias_LE[0]
        violations.append(max_vio(counts_LE)[0])
    return torch.stack(violations)


@pytest.mark.parametrize(("experts", "top_k", "critical"), [(8, 2, 1.48), (8, 1, 1.10), (16, 2, 1.07)])
def test_the_proportional_law_converges_below_the_critical_gain_and_not_above(
    experts: int, top_k: int, critical: float, law_settings: MakeSettings
) -> None:
    """Critical rates as measured, in standard deviations of the scores; 30% of margin on both sides."""
    logits_TE = plant(8192, experts, 0.3)
    below = steer_plant(law_settings("proportional", rate=0.7 * critical), logits_TE, top_k, 60)
    above = steer_plant(law_settings("proportional", rate=1.3 * critical), logits_TE, top_k, 60)
    assert below[0] > 0.3
    assert below[-1] < 0.05
    assert above[-10:].min() > 0.3


def test_the_sign_law_ends_in_a_cycle_of_rate_times_slope(law_settings: MakeSettings) -> None:
    """MaxVio ripples about u g, g = 1.13 for 8 experts and top-2 (measured .0103 at u = .01)."""
    logits_TE, ripples = plant(8192, 8, 0.05), []
    for rate in (0.01, 0.03):
        ripples.append(steer_plant(law_settings("sign", rate=rate), logits_TE, 2, 60)[-20:].mean().item())
        assert 0.5 * rate * 1.13 < ripples[-1] < 2.0 * rate * 1.13
    assert 2.0 < ripples[1] / ripples[0] < 4.0


@pytest.mark.parametrize("form", ["exact", "histogram"])
def test_quantile_balancing_settles_a_still_plant_in_a_few_updates(form: str, law_settings: MakeSettings) -> None:
    violations = steer_plant(law_settings("quantile", form=form), plant(8192, 8, 1.0), 2, 12, gate="sigmoid")
    assert violations[0] > 1.0
    assert violations[5] < 0.1
    assert violations[-1] < 0.03


RATES: dict[str, dict[str, object]] = {
    "sign": {"rate": 0.05},
    "centered_sign": {"rate": 0.05},
    "proportional": {"rate": 0.3},
    "smebu": {"rate": 0.1},
    "quantile": {},
    "bip": {},
    "sinkhorn": {},
    "chronovisor": {"pressure_scale": 0.5, "gamma": 0.5},
}
Loop = Callable[..., tuple[LanguageModel, ChronovisorCallback]]


@pytest.fixture
def loop(tiny_model: Callable[..., LanguageModel], law_settings: MakeSettings, tmp_path: Path) -> Loop:
    """loop(law, model=None, **overrides): a tiny model in training mode and the callback that steers it."""

    def loop(
        law: str, model: LanguageModel | None = None, **overrides: object
    ) -> tuple[LanguageModel, ChronovisorCallback]:
        model = tiny_model().train() if model is None else model
        controller = Chronovisor(law_settings(law, **overrides), 2, 4)
        callback = ChronovisorCallback(controller, model, max_steps=99, record_path=tmp_path / "routing.npz")
        callback.on_train_start(None, None)  # type: ignore[arg-type]
        return model, callback

    return loop


@torch.no_grad()
def step_once(model: LanguageModel, callback: ChronovisorCallback, micro_batches: list[Tensor]) -> None:
    for ids_BS in micro_batches:
        model(ids_BS)
    callback.on_before_optimizer_step(None, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("law", RATES)
def test_every_law_balances_a_language_model_on_the_same_tokens(
    law: str, loop: Loop, draw_ids: Callable[..., Tensor]
) -> None:
    violations = []
    for name in ("off", law):
        model, callback = loop(name, **RATES.get(name, {}))
        for _ in range(25):
            step_once(model, callback, [draw_ids(8, 24)])
        violations.append(callback.max_vio_history[20:25].mean().item())
    assert violations[1] < 0.6 * violations[0]


@pytest.mark.parametrize(
    ("law", "overrides"),
    [*((law, {}) for law in BY_COUNTS), ("quantile", {"form": "histogram"}), ("chronovisor", {})],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_step_gives_the_same_field_however_it_is_split_into_micro_batches(
    law: str,
    overrides: dict[str, object],
    loop: Loop,
    tiny_model: Callable[..., LanguageModel],
    draw_ids: Callable[..., Tensor],
) -> None:
    fields = []
    for parts in (1, 2):
        model = tiny_model().double().train()  # in fp64 the size of a batch does not show in a logit's fp32
        for block in model.blocks:
            block.ffn.router.gate_kind = "sigmoid"
        model, callback = loop(law, model, **overrides)
        for seed in range(4):
            step_once(model, callback, list(draw_ids(8, 12, seed=seed).chunk(parts)))
        fields.append(model.expert_bias_LE.clone())
    assert torch.equal(*fields)
    assert fields[0].any()


def test_exact_quantiles_of_micro_batches_are_averaged_and_so_depend_on_the_split(
    loop: Loop, draw_ids: Callable[..., Tensor]
) -> None:
    fields = []
    for parts in (1, 2):
        model, callback = loop("quantile")
        step_once(model, callback, list(draw_ids(8, 12).chunk(parts)))
        fields.append(model.expert_bias_LE.clone())
    assert 1e-4 < (fields[0] - fields[1]).abs().max() < 0.5


@pytest.mark.parametrize("law", BY_COUNTS)
def test_small_corrections_of_a_large_bias_survive_a_bf16_model(
    law: str, loop: Loop, draw_ids: Callable[..., Tensor]
) -> None:
    model, callback = loop(law, rate=1e-4)
    model.to(torch.bfloat16)
    callback.controller.state["bias_LE"] += 7.0  # bf16 has steps of 0.03 here
    step_once(model, callback, [draw_ids(4, 12)])
    assert {model.expert_bias_LE.dtype, *(t.dtype for t in callback.controller.state.values())} == {torch.float32}
    moved_LE = model.expert_bias_LE - model.expert_bias_LE.mean().round()
    assert 0 < moved_LE.abs().max() < 2e-3
    assert torch.equal(model.expert_bias_LE, callback.controller.state["bias_LE"])
