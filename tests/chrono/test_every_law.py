"""What every control law owes, whatever its equations. A law added to the registry is tested here without an edit.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.clocks import strike
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings, ControlSettings, Field, State
from chronomoe.chrono.observation import Observation

MakeSettings = Callable[..., ChronoSettings]
MakeObservations = Callable[..., list[Observation]]
LAYERS, EXPERTS, STEPS = 3, 6, 24
KNOBS = ("schedule", "rule")
NO_FURTHER_CHOICES = ("law", "actuation")  # the name of the law itself, and what the model rather than the law does


def choices_of(law: str) -> list[dict[str, object]]:
    """The law as its file has it, and with each choice of each of its settings, one setting at a time."""
    changes: list[dict[str, object]] = [{}]
    for field in dataclasses.fields(LAWS[law].settings):
        if field.name not in NO_FURTHER_CHOICES:
            changes += [{field.name: choice} for choice in field.metadata.get("choices") or []]
    return changes


def variants_of(laws: list[str]) -> list[object]:
    """Every law in every variant, with every temperature it can have."""
    cases = []
    for law in laws:
        heats = ["off", "documented", "structural"] if issubclass(LAWS[law].settings, ControlSettings) else ["off"]
        for change in choices_of(law):
            for heat in heats:
                name = "-".join([law, *map(str, change.values()), f"temperature {heat}"])
                cases.append(pytest.param(law, {"temperature": heat} | change, id=name))
        if issubclass(LAWS[law].settings, ControlSettings):
            cases += [pytest.param(law, {"temperature": "structural", "knob": k}, id=f"{law}-{k}") for k in KNOBS]
    return cases


every_variant = pytest.mark.parametrize(("law", "change"), variants_of(list(LAWS)))
OF_THE_FIELD = ["sign", "centered_sign", "proportional", "smebu", "quantile", "bip"]
CONTROLLING = [law for law in LAWS if issubclass(LAWS[law].settings, ControlSettings)]


def start(law: str, settings: ChronoSettings) -> State:
    return LAWS[law].start(LAYERS, EXPERTS, settings, torch.Generator().manual_seed(0))


def run(
    law: str, settings: ChronoSettings, observations: list[Observation], state: State, ablated: str | None = None
) -> list[Field]:
    """The fields of a sequence of observations; `ablated` names a state variable that is lost after every tick."""
    fields, initial = [], dict(state)
    for step, observation in enumerate(observations, start=1):
        ticks = strike(step, Chronovisor(settings, LAYERS, EXPERTS).clocks)
        state, field, _ = LAWS[law].step(state, observation, ticks, settings)
        if ablated is not None:
            state = state | {ablated: torch.zeros_like(initial[ablated])}
        fields.append(field)
    return fields


def tensors_of(observation: Observation) -> list[Tensor]:
    return [*observation[:3], *observation.readings.values(), observation.loss]


def rename(observation: Observation, order_E: Tensor) -> Observation:
    """The same observation with the experts in another order."""
    readings = {name: reading_LEC[:, order_E] for name, reading_LEC in observation.readings.items()}
    return Observation(*(values_LE[:, order_E] for values_LE in observation[:3]), readings, observation.loss)


def largest_difference(ours: list[Field], theirs: list[Field]) -> float:
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max()) for field, other in pairs for a, b in zip(field, other, strict=True))


@every_variant
def test_a_state_variable_acts_on_routing_unless_it_is_declared_inert(
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
) -> None:
    settings, observations = law_settings(law, **change), random_observations(STEPS)
    initial = start(law, settings)
    whole = run(law, settings, observations, initial)
    for name in initial:
        effect = largest_difference(run(law, settings, observations, initial, ablated=name), whole)
        # The published phases reach a router through the published temperature or not at all.
        heats_only = name == "phase_LE" and change["temperature"] != "documented"
        if name in LAWS[law].inert or heats_only:
            assert effect == 0.0, name
        else:
            assert effect > 1e-6, name


@pytest.mark.parametrize("law", LAWS)
def test_declared_inert_state_exists(law: str, law_settings: MakeSettings) -> None:
    names = {name for change in choices_of(law) for name in start(law, law_settings(law, **change))}
    assert names >= LAWS[law].inert


@every_variant
def test_a_step_changes_neither_its_state_nor_its_observation(
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
) -> None:
    settings = law_settings(law, **change)
    state = start(law, settings)
    for step, observation in enumerate(random_observations(8), start=1):
        copies = {name: tensor.clone() for name, tensor in state.items()}
        seen = [tensor.clone() for tensor in tensors_of(observation)]
        after, _, _ = LAWS[law].step(
            state, observation, strike(step, Chronovisor(settings, LAYERS, EXPERTS).clocks), settings
        )
        assert copies.keys() == state.keys() == after.keys()
        assert all(torch.equal(state[name], copy) for name, copy in copies.items())
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors_of(observation), seen, strict=True))
        assert all(after[name].dtype == copy.dtype for name, copy in copies.items())
        state = after


@every_variant
def test_fields_are_finite_fp32_and_have_the_routers_shape(
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
    observe: Callable[[Tensor], Observation],
) -> None:
    settings = law_settings(law, **change)
    nothing = observe(torch.zeros(LAYERS, EXPERTS, dtype=torch.int64))
    everything_to_one = observe(torch.eye(EXPERTS, dtype=torch.int64)[:LAYERS] * 256)
    awkward = [nothing, everything_to_one, nothing, everything_to_one, *random_observations(4)]
    for field in run(law, settings, awkward, start(law, settings)):
        for values_LE in field:
            assert values_LE.shape == (LAYERS, EXPERTS)
            assert values_LE.dtype == torch.float32
            assert torch.isfinite(values_LE).all()


@every_variant
def test_renaming_the_experts_renames_the_field(
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
) -> None:
    settings, observations = law_settings(law, **change), random_observations(STEPS)
    order_E = torch.tensor([4, 2, 0, 5, 1, 3])
    initial = start(law, settings)
    renamed = {name: tensor[..., order_E] if name.endswith("E") else tensor for name, tensor in initial.items()}
    seen = [rename(observation, order_E) for observation in observations]
    expected = [Field(*(values[:, order_E] for values in field)) for field in run(law, settings, observations, initial)]
    assert largest_difference(run(law, settings, seen, renamed), expected) < 1e-5


@pytest.mark.parametrize("law", OF_THE_FIELD)
def test_a_less_used_expert_never_gets_less_bias(
    law: str, law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    for seed in range(20):
        (observation,) = random_observations(1, seed=seed)
        bias_LE = Chronovisor(law_settings(law), LAYERS, EXPERTS).tick(observation).bias_LE
        ordered_LE = bias_LE.gather(1, observation.tokens_per_expert_LE.argsort(dim=-1))
        assert ordered_LE.diff(dim=-1).le(1e-6).all()
        assert (ordered_LE[:, 0] > ordered_LE[:, -1]).all()


@pytest.mark.parametrize("law", [*OF_THE_FIELD, *CONTROLLING])
def test_a_fair_load_leaves_the_field_neutral(
    law: str, law_settings: MakeSettings, observe: Callable[[Tensor], Observation]
) -> None:
    controller = Chronovisor(law_settings(law), LAYERS, EXPERTS)
    for _ in range(8):
        field = controller.tick(observe(torch.full((LAYERS, EXPERTS), 40)))
        assert field.bias_LE.abs().max() < 1e-3  # a histogram's bins are 0.002 wide


@pytest.mark.parametrize("law", CONTROLLING)
def test_a_less_used_expert_never_gets_less_pressure(
    law: str, law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    settings = law_settings(law)
    for seed in range(20):
        controller = Chronovisor(settings, LAYERS, EXPERTS)
        used_LE = torch.zeros(LAYERS, EXPERTS)
        keep = 0.5 ** (1 / settings.half_life_steps)
        for observation in random_observations(settings.clocks.micro_period, seed=seed):
            controller.tick(observation)
            used_LE = keep * used_LE + observation.tokens_per_expert_LE
        order_LE = used_LE.argsort(dim=-1)
        pressure_LE = controller.signals["pressure_LE"].gather(1, order_LE)
        assert pressure_LE.diff(dim=-1).le(1e-6).all()
        assert (pressure_LE[:, 0] > pressure_LE[:, -1]).all()


@every_variant
@pytest.mark.parametrize("stop", [5, 12])
def test_a_saved_controller_goes_on_bit_for_bit(
    stop: int,
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
) -> None:
    settings, observations = law_settings(law, **change), random_observations(STEPS)
    whole = Chronovisor(settings, LAYERS, EXPERTS, seed=1)
    expected = [whole.tick(observation) for observation in observations]
    first = Chronovisor(settings, LAYERS, EXPERTS, seed=1)
    for observation in observations[:stop]:
        first.tick(observation)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = Chronovisor(settings, LAYERS, EXPERTS, seed=2)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert largest_difference([resumed.tick(o) for o in observations[stop:]], expected[stop:]) == 0.0
    assert resumed.signals.keys() == whole.signals.keys()
    assert all(torch.equal(resumed.signals[name], signal) for name, signal in whole.signals.items())


@every_variant
def test_equal_observations_give_equal_fields(
    law: str,
    change: dict[str, object],
    law_settings: MakeSettings,
    random_observations: MakeObservations,
) -> None:
    settings, observations = law_settings(law, **change), random_observations(8)
    runs = [run(law, settings, observations, start(law, settings)) for _ in range(2)]
    assert largest_difference(*runs) == 0.0


@pytest.mark.parametrize("law", CONTROLLING)
@pytest.mark.parametrize("temperature", ["off", "documented", "structural"])
def test_the_field_is_exactly_neutral_until_the_start_step_and_acts_after_it(
    law: str, temperature: str, law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    settings = law_settings(law, temperature=temperature, start_step=7)
    fields = run(law, settings, random_observations(STEPS), start(law, settings))
    for step, field in enumerate(fields, start=1):
        acts = any(values_LE.any() for values_LE in field)
        assert acts == (step > 7), step


@pytest.mark.parametrize("law", CONTROLLING)
def test_layer_scales_multiply_the_pressure_of_each_layer(
    law: str, law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    scales = [0.0, 1.0, 2.5]
    observation = random_observations(1)[0]
    pressures = []
    for layer_scales in ([], scales):
        controller = Chronovisor(law_settings(law, layer_scales=layer_scales), LAYERS, EXPERTS)
        for _ in range(2):
            controller.tick(observation)
        pressures.append(controller.signals["pressure_LE"])
    torch.testing.assert_close(pressures[1], pressures[0] * torch.tensor(scales)[:, None])
    assert pressures[0].any()


def test_off_never_leaves_neutral(law_settings: MakeSettings, random_observations: MakeObservations) -> None:
    controller = Chronovisor(law_settings("off"), LAYERS, EXPERTS)
    for observation in random_observations(10):
        assert not any(values_LE.any() for values_LE in controller.tick(observation))
