"""The documented law against its published numbers and against its equations written out step by step.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chronomoe.chrono import coherence
from chronomoe.chrono.clocks import ClockSettings
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings, Field
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.temperature import documented_fast
from chronomoe.model.router import heat

MakeSettings = Callable[..., ChronoSettings]
Observe = Callable[..., Observation]
PUBLISHED_CLOCKS = ClockSettings(micro_period=5, macro_period=20)
SHARE_IN_PERCENT = [30, 20, 15, 10, 10, 5, 5, 5]
DECAY = 0.95
HALF_LIFE = math.log(0.5) / math.log(DECAY)


def by_expert(first: float, second: float, third: float, fourth_fifth: float, last_three: float) -> torch.Tensor:
    """A row of the published table, which gives equal experts one column."""
    return torch.tensor([first, second, third, fourth_fifth, fourth_fifth, last_three, last_three, last_three])


PRESSURE = by_expert(-0.35, -0.15, -0.05, 0.05, 0.15)
FAST = by_expert(1.625, 1.504762, 1.433929, 1.477381, 1.645833)
LOCAL_1 = by_expert(1.00625, 1.005048, 1.004339, 1.004774, 1.006458)
EFFECTIVE_1 = by_expert(1.635156, 1.512357, 1.440151, 1.484434, 1.656463)
GLOBAL_2 = by_expert(1.003125, 1.002524, 1.00217, 1.002387, 1.003229)
EFFECTIVE_2 = by_expert(1.650352, 1.523713, 1.449449, 1.494976, 1.672369)


@pytest.fixture
def published(law_settings: MakeSettings) -> Chronovisor:
    """The law as published (phase coherence, temperature, clocks 5 and 20); its phases read R = 0.5 and stay there."""
    settings = law_settings(
        "documented", temperature="documented", coherence="phase", clocks=PUBLISHED_CLOCKS, pressure_scale=0.1
    )
    controller = Chronovisor(settings, 2, 8)
    controller.state["phase_LE"] = torch.tensor([1.0, -1.0]).repeat(2, 4) * math.pi / 3
    return controller


def tick_with_published_shares(controller: Chronovisor, times: int) -> Field:
    counts_LE = torch.tensor([SHARE_IN_PERCENT] * 2)
    for _ in range(times):
        field = controller.tick(Observation(counts_LE, torch.zeros(2, 8).double()))  # no gate mass: no phase moves
    return field


def assert_published(value: torch.Tensor, expected_E: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected_E.expand_as(value), rtol=0, atol=1e-6)


def test_the_published_vectors_of_the_first_two_micro_ticks(published: Chronovisor) -> None:
    field, state = tick_with_published_shares(published, 5), published.state
    assert_published(state["coherence"], torch.tensor(0.5))
    assert_published(state["pressure_LE"], PRESSURE)
    assert_published(state["fast_temperature_LE"], FAST)
    assert_published(state["local_temperature_LE"], LOCAL_1)
    assert_published(state["effective_temperature_LE"], EFFECTIVE_1)
    assert_published(field.log_temperature_LE.exp(), EFFECTIVE_1)
    assert_published(field.bias_LE, 0.1 * PRESSURE / EFFECTIVE_1)

    tick_with_published_shares(published, 5)
    state = published.state
    assert_published(state["fast_temperature_LE"], FAST)
    assert_published(state["global_temperature_E"], GLOBAL_2)
    assert_published(state["effective_temperature_LE"], EFFECTIVE_2)
    assert state["global_temperature_E"].var(correction=0).item() == pytest.approx(1.84e-7, rel=5e-3)


def test_the_shared_temperature_lags_one_micro_tick(published: Chronovisor) -> None:
    tick_with_published_shares(published, 5)
    assert torch.equal(published.state["global_temperature_E"], torch.ones(8))
    tick_with_published_shares(published, 4)
    assert torch.equal(published.state["global_temperature_E"], torch.ones(8))
    tick_with_published_shares(published, 1)
    assert_published(published.state["global_temperature_E"], GLOBAL_2)


def test_the_entropy_form_reads_the_published_value(law_settings: MakeSettings) -> None:
    controller = Chronovisor(law_settings("documented"), 2, 8)
    mass_LE = torch.tensor([SHARE_IN_PERCENT] * 2).double()
    counts_LE = torch.ones(2, 8, dtype=torch.int64)  # coherence is measured on gate mass, not on counts
    controller.tick(Observation(counts_LE, mass_LE))
    assert controller.state["coherence"].item() == pytest.approx(0.097102, abs=1e-6)
    entropy = -sum(p / 100 * math.log(p / 100) for p in SHARE_IN_PERCENT)
    assert entropy == pytest.approx(1.877524, abs=1e-6)


def test_the_published_clocks_strike_twenty_four_and_one_times_in_twenty_steps(published: Chronovisor) -> None:
    moved = {"memory_LE": 0, "fast_temperature_LE": 0, "lens_LE": 0}
    for step in range(20):
        before = dict(published.state)
        counts_LE = torch.tensor([SHARE_IN_PERCENT] * 2).roll(step, dims=1)
        published.tick(Observation(counts_LE, torch.zeros(2, 8).double()))
        for name in moved:
            moved[name] += not torch.equal(published.state[name], before[name])
    assert list(moved.values()) == [20, 4, 1]


def test_the_field_is_the_published_warp_of_centred_logits() -> None:
    logits_TE = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    centred_TE = logits_TE - logits_TE.mean(-1, keepdim=True)
    published_TE = (centred_TE + 0.1 * PRESSURE) / EFFECTIVE_1
    ours_TE = heat(centred_TE, EFFECTIVE_1.log()) + 0.1 * PRESSURE / EFFECTIVE_1
    torch.testing.assert_close(ours_TE, published_TE)


class Reading(NamedTuple):
    bias: NDArray[np.float64]
    log_temperature: NDArray[np.float64]
    lens: NDArray[np.float64]


def written_out(
    observations: list[Observation], settings: ChronoSettings, phases: NDArray[np.float64] | None
) -> Iterator[Reading]:
    """The published algorithm in NumPy, in its published order: usage, coherence, micro tick, macro tick."""
    layers, experts = observations[0].tokens_per_expert_LE.shape
    usage, lens, pressure = (np.zeros((layers, experts)) for _ in range(3))
    fast, local, shared, effective = (np.ones((layers, experts)) for _ in range(4))
    last = 0.0
    for step, observation in enumerate(observations, start=1):
        counts, mass = (tensor.numpy().astype(float) for tensor in observation[:2])
        usage = DECAY * usage + (1 - DECAY) * counts
        if phases is None:
            q = mass / mass.sum(1, keepdims=True)
            now = 1 + (q * np.log(q)).sum(1).mean() / math.log(experts)
        else:
            phases = (phases + 0.1 * mass / counts) % (2 * math.pi)
            now = abs(np.exp(1j * phases).mean())
        gate, last = 1 / (1 + math.exp(-5 * (now - last))), now
        if step % settings.clocks.micro_period == 0:
            p = usage / usage.sum(1, keepdims=True)
            drift = abs(p - 1 / experts)
            eta = settings.temperature.eta
            eta_global = eta / 2
            shared = (1 - eta_global) * shared + eta_global * fast.mean(0)
            pressure = np.clip(2 * (1 / experts - p), -1, 1)
            heat = (1 + 0.3 * drift / drift.max(1, keepdims=True)) * (1 + 0.2 * (1 - p / p.max(1, keepdims=True)))
            fast = np.clip((1 + 0.5 * (1 - now)) * heat, 0.3, 3)
            local = (1 - eta) * local + eta * fast
            effective = fast * shared * local
        if step % settings.clocks.macro_period == 0:
            lens = lens + settings.gamma * gate * pressure
        temperature = np.clip(effective, 0.1, 10)
        yield Reading(settings.pressure_scale * pressure / temperature, np.log(temperature), lens)


@pytest.mark.parametrize("measure", ["entropy", "phase"])
def test_the_law_equals_its_equations_written_out(
    measure: str, law_settings: MakeSettings, random_observations: Callable[..., list[Observation]]
) -> None:
    settings = law_settings("documented", temperature="documented", coherence=measure, half_life_steps=HALF_LIFE)
    observations = random_observations(60)
    controller = Chronovisor(settings, 3, 6)
    phases = controller.state["phase_LE"].double().numpy() if measure == "phase" else None
    for observation, expected in zip(observations, written_out(observations, settings, phases), strict=True):
        field = controller.tick(observation)
        np.testing.assert_allclose(field.bias_LE, expected.bias, atol=1e-6)
        np.testing.assert_allclose(field.log_temperature_LE, expected.log_temperature, atol=2e-6)
        np.testing.assert_allclose(controller.state["lens_LE"], expected.lens, atol=1e-6)


@given(
    loads=st.lists(st.integers(0, 1000), min_size=8, max_size=8).filter(any),
    top_k=st.integers(1, 4),
    coherence_value=st.floats(0, 1),
)
def test_pressure_and_temperature_stay_in_their_derived_ranges(
    law_settings: MakeSettings, loads: list[int], top_k: int, coherence_value: float
) -> None:
    # A token picks an expert once, so no share exceeds 1/k: mix with the fair share until that holds.
    share_E = torch.tensor(loads, dtype=torch.float64) / sum(loads)
    share_E = share_E.clamp(max=1 / top_k)
    missing = 1 - share_E.sum()
    room_E = 1 / top_k - share_E
    share_LE = (share_E + (missing * room_E / room_E.sum() if missing > 1e-12 else 0.0)).expand(2, 8)
    controller = Chronovisor(law_settings("documented"), 2, 8)
    for _ in range(2):
        controller.tick(Observation((share_LE * 1e6).round().long(), share_LE))
    pressure_LE = controller.state["pressure_LE"]
    assert pressure_LE.min() >= max(-1.0, 2 * (1 / 8 - 1 / top_k)) - 1e-5
    assert pressure_LE.max() <= 2 / 8 + 1e-6
    fast_LE = documented_fast(share_LE.float(), torch.tensor(coherence_value))
    assert fast_LE.min() >= 1.0
    assert fast_LE.max() <= 1.5 * 1.3 * 1.2 + 1e-5


def test_the_effective_temperature_tends_to_the_cube_of_the_fast_one(published: Chronovisor) -> None:
    tick_with_published_shares(published, 5 * 2000)
    effective_LE = published.state["effective_temperature_LE"]
    torch.testing.assert_close(effective_LE, (FAST**3).expand(2, 8), rtol=1e-4, atol=0)
    assert effective_LE.max() < (1.5 * 1.3 * 1.2) ** 3


def test_the_documented_lens_grows_and_reaches_no_router(published: Chronovisor) -> None:
    """The published defect, kept: the lens integrates the pressure and nothing reads it."""
    tick_with_published_shares(published, 20)
    before = published.state["lens_LE"].clone()
    field = tick_with_published_shares(published, 20)
    assert (published.state["lens_LE"].abs() > before.abs()).all()
    published.state["lens_LE"] = 1e6 * torch.ones(2, 8)
    again = tick_with_published_shares(published, 1)
    assert all(torch.equal(a, b) for a, b in zip(field, again, strict=True))
    assert LAWS["documented"].inert == {"lens_LE", "coherence"}


def test_the_documented_gate_is_stuck_at_one_half(published: Chronovisor) -> None:
    tick_with_published_shares(published, 20)
    assert_published(published.signals["gate_L"], torch.tensor([0.5, 0.5]))


def test_random_phases_read_their_published_null() -> None:
    generator = torch.Generator().manual_seed(0)
    for oscillators, published_mean in ((16, 0.222), (32, 0.157), (64, 0.111)):
        readings = torch.stack(
            [
                coherence.phase_order(2 * math.pi * torch.rand(2, oscillators // 2, generator=generator))
                for _ in range(4000)
            ]
        )
        assert readings.mean().item() == pytest.approx(published_mean, abs=3 * readings.std().item() / math.sqrt(4000))
        assert published_mean == pytest.approx(math.sqrt(math.pi / (4 * oscillators)), abs=5e-4)
