"""The Chronovisor law: its lens removes what pressure leaves, stays bounded, and does nothing where nothing is wrong.

Axes: L MoE layers, E experts, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.clocks import ClockSettings
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.chronovisor import bounded
from chronomoe.chrono.metrics.load import max_vio
from chronomoe.chrono.observation import Observation

MakeSettings = Callable[..., Any]
Observe = Callable[..., Observation]
UNEVEN = torch.tensor([[90, 50, 30, 10, 10, 2], [10, 60, 50, 40, 30, 2]])


@pytest.mark.parametrize("temperature", ["off", "structural"])
@pytest.mark.parametrize("measure", ["entropy", "alignment", "stability"])
@pytest.mark.parametrize("lens", ["per_layer", "global"])
def test_a_perfectly_balanced_load_gives_an_all_zero_field(
    lens: str, measure: str, temperature: str, law_settings: MakeSettings, observe: Observe
) -> None:
    settings = law_settings("chronovisor", temperature=temperature, coherence=measure, lens=lens)
    controller = Chronovisor(settings, 2, 6)
    for _ in range(20):
        field = controller.tick(observe(torch.full((2, 6), 7)))
        assert all(values_LE.abs().max() < 1e-6 for values_LE in field)


def test_the_field_shrinks_with_the_imbalance(law_settings: MakeSettings, observe: Observe) -> None:
    largest = []
    for imbalance in (1000, 100, 10):
        controller = Chronovisor(law_settings("chronovisor"), 1, 4)
        counts_LE = 10_000 + imbalance * torch.tensor([[3, 1, -1, -3]])
        for _ in range(20):
            field = controller.tick(observe(counts_LE))
        largest.append(field.bias_LE.abs().max().item())
    for more, less in pairwise(largest):
        assert less == pytest.approx(more / 10, rel=0.05)


def test_the_field_is_pressure_plus_lens_by_the_documented_formulas(
    law_settings: MakeSettings, observe: Observe
) -> None:
    settings = law_settings(
        "chronovisor", gamma=0.3, leak=0.25, lens_bound=9.0, clocks=ClockSettings(micro_period=1, macro_period=1)
    )
    controller = Chronovisor(settings, 2, 6)
    clipped_LE = (1 - 6 * UNEVEN / UNEVEN.sum(-1, keepdim=True)).clamp(-1, 1)
    error_LE = clipped_LE - clipped_LE.mean(-1, keepdim=True)
    lens_LE = torch.zeros(2, 6)
    for _ in range(5):
        field = controller.tick(observe(UNEVEN))
        lens_LE = 0.75 * lens_LE + 0.3 * controller.signals["gate_L"][:, None] * error_LE
        lens_LE = lens_LE - lens_LE.mean(-1, keepdim=True)
        torch.testing.assert_close(field.bias_LE, settings.pressure_scale * error_LE + lens_LE)


def test_the_gate_opens_while_coherence_rises_and_closes_while_it_falls(
    law_settings: MakeSettings, observe: Observe
) -> None:
    controller = Chronovisor(law_settings("chronovisor", half_life_steps=0.1), 1, 4)
    gates = []
    for spread in (0, 10, 30, 60, 40, 20):  # each held for a macro period
        for _ in range(4):
            controller.tick(observe(100 + spread * torch.tensor([[1, 0, 0, -1]])))
        gates.append(controller.signals["gate_L"].item())
    assert gates[0] == pytest.approx(0.5)
    assert all(gate > 0.5 for gate in gates[1:4])
    assert all(gate < 0.5 for gate in gates[4:])


def test_the_first_reading_of_coherence_is_no_change_and_leaves_no_trace(
    law_settings: MakeSettings, observe: Observe
) -> None:
    controller = Chronovisor(law_settings("chronovisor", half_life_steps=0.1), 1, 4)
    gates = []
    for spread in (60, 60, 62, 60):  # far from balance from the start, then small changes of equal size
        for _ in range(4):
            controller.tick(observe(100 + spread * torch.tensor([[1, 0, 0, -1]])))
        gates.append(controller.signals["gate_L"].item())
    assert gates[:2] == pytest.approx([0.5, 0.5])
    assert gates[2] > 0.75  # the first change there ever was is larger than the usual one
    assert gates[3] < 0.35


@given(
    lens=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
    bound=st.sampled_from([0.0, 0.5, 4.0]),
)
def test_a_bounded_lens_is_within_its_bound_centred_and_ordered_as_before(lens: list[float], bound: float) -> None:
    lens_LE = torch.tensor([lens])
    limited_LE = bounded(lens_LE, bound)
    assert limited_LE.abs().max() <= bound * (1 + 1e-6)
    assert limited_LE.mean().abs() <= 1e-6 * max(1.0, bound) + 1e-7 * lens_LE.abs().max()
    assert limited_LE[0, lens_LE[0].argsort()].diff().ge(-1e-6).all()


@given(
    loads=st.lists(st.lists(st.integers(0, 500), min_size=5, max_size=5), min_size=1, max_size=12),
    gamma=st.floats(0, 10),
    leak=st.floats(0, 1),
    lens=st.sampled_from(["per_layer", "global"]),
)
def test_the_lens_stays_zero_mean_and_within_its_bound_under_any_load(
    law_settings: MakeSettings, observe: Observe, loads: list[list[int]], gamma: float, leak: float, lens: str
) -> None:
    settings = law_settings("chronovisor", gamma=gamma, leak=leak, lens=lens, lens_bound=1.5)
    controller = Chronovisor(settings, 2, 5)
    for load in loads * 8:
        controller.tick(observe(torch.stack((torch.tensor(load), torch.tensor(load[::-1])))))
        lens_LE = controller.state["lens_LE"]
        assert lens_LE.abs().max() <= 1.5 * (1 + 1e-6)
        assert lens_LE.mean(dim=-1).abs().max() < 1e-5


def test_a_saturated_lens_turns_back_at_the_first_macro_tick_of_the_opposite_error(
    law_settings: MakeSettings, observe: Observe
) -> None:
    controller = Chronovisor(law_settings("chronovisor", gamma=1.0, lens_bound=2.0, half_life_steps=0.1), 1, 6)
    for _ in range(400):
        controller.tick(observe(UNEVEN[:1]))
    wound_LE = controller.state["lens_LE"].clone()
    assert wound_LE.abs().max() == pytest.approx(2.0)
    for _ in range(4):
        controller.tick(observe(UNEVEN[:1].flip(-1)))
    turned_LE = controller.state["lens_LE"] - wound_LE
    assert turned_LE[0, 0] > 0.1
    assert turned_LE[0, -1] < -0.1


def test_the_lens_does_not_wind_up_while_the_controller_only_watches(
    law_settings: MakeSettings, observe: Observe
) -> None:
    controller = Chronovisor(law_settings("chronovisor", start_step=8), 2, 6)
    for _ in range(8):
        controller.tick(observe(UNEVEN))
    assert not controller.state["lens_LE"].any()
    for _ in range(4):
        controller.tick(observe(UNEVEN))
    assert controller.state["lens_LE"].any()


def test_a_global_lens_is_one_lens_for_all_layers_and_hears_them_all(
    law_settings: MakeSettings, observe: Observe
) -> None:
    lenses = []
    for lens in ("per_layer", "global"):
        controller = Chronovisor(law_settings("chronovisor", lens=lens), 2, 6)
        for _ in range(8):
            controller.tick(observe(UNEVEN))
        lenses.append(controller.state["lens_LE"])
    apart_LE, shared_LE = lenses
    assert torch.equal(shared_LE[0], shared_LE[1])
    assert not torch.allclose(apart_LE[0], apart_LE[1])
    assert shared_LE.abs().max() > 0.01


SCORES = 1.5 * torch.tensor([0.9, 0.5, 0.3, 0.0, -0.1, -0.3, -0.5, -0.8])
"""Mean logit of each of 8 experts in a router that never learns: a static plant."""


def route_without_learning(bias_E: Tensor, generator: torch.Generator, num_tokens: int = 4096) -> Tensor:
    """Counts [1, E] of a top-2 router with fixed Gaussian scores and a selection bias."""
    scores_TE = SCORES + torch.randn(num_tokens, 8, generator=generator)
    return (scores_TE + bias_E).topk(2, dim=-1).indices.flatten().bincount(minlength=8)[None]


def steady_max_vio(controller: Chronovisor, observe: Observe, steps: int = 600) -> float:
    """MaxVio of the mean load over the last 50 steps, so that sampling noise hardly counts."""
    generator, bias_E, loads = torch.Generator().manual_seed(0), torch.zeros(8), []
    for _ in range(steps):
        counts_LE = route_without_learning(bias_E, generator)
        bias_E = controller.tick(observe(counts_LE)).bias_LE[0]
        loads.append(counts_LE)
    return max_vio(torch.stack(loads[-50:]).sum(dim=0)).item()


def test_on_a_static_plant_the_lens_removes_the_error_that_pressure_alone_leaves(
    law_settings: MakeSettings, observe: Observe
) -> None:
    clocks = ClockSettings(micro_period=1, macro_period=4)
    uncontrolled = steady_max_vio(Chronovisor(law_settings("off"), 1, 8), observe)
    proportional = steady_max_vio(Chronovisor(law_settings("chronovisor", clocks=clocks, gamma=0.0), 1, 8), observe)
    integrating = steady_max_vio(Chronovisor(law_settings("chronovisor", clocks=clocks), 1, 8), observe)
    assert uncontrolled > 1.0
    assert 0.3 < proportional < 0.95 * uncontrolled
    # A random router reads about sqrt(2 (1 - k/E) ln E / n) = 0.008 on n = 50 * 1024 assignments an expert.
    assert integrating < 0.02
