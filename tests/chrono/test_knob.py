"""The meta-knob: its ends, its rule, and what it turns.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono import knob
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.knob import KnobSettings
from chronomoe.chrono.observation import Observation

CONTROLLING = ("chronovisor", "documented")
Observe = Callable[..., Observation]


def turn(loss: float, share_E: list[float], state: knob.State, *, micro: bool = True) -> knob.State:
    """One step of the rule under a loss and a gate mass."""
    mass_LE = torch.tensor([share_E], dtype=torch.float64)
    observation = Observation(mass_LE.long(), mass_LE, loss=torch.tensor(loss))
    return state | knob.step(state, observation, Ticks(1, micro, False), KnobSettings(kind="rule", run_steps=100))


def after(losses: list[float], share_E: list[float]) -> float:
    state = knob.start(KnobSettings(kind="rule", run_steps=100))
    for loss in losses:
        state = turn(loss, share_E, state)
    return state["knob_kappa"].item()


MIDDLE = [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.1]  # entropy 0.78 of ln 8: inside the band, no term acts


def test_a_schedule_holds_then_falls_along_a_cosine_to_its_end() -> None:
    settings = KnobSettings(kind="schedule", value=0.5, end_value=-0.3, hold_frac=0.1, run_steps=10_000)
    assert knob.scheduled(1, settings) == knob.scheduled(1_000, settings) == 0.5
    assert knob.scheduled(1_001, settings) == pytest.approx(0.5, abs=1e-6)  # the original jumped to its end here
    assert knob.scheduled(5_500, settings) == pytest.approx(0.1)
    assert knob.scheduled(10_000, settings) == knob.scheduled(20_000, settings) == pytest.approx(-0.3)
    along = [knob.scheduled(step, settings) for step in range(0, 12_000, 50)]
    assert along == sorted(along, reverse=True)


def test_a_schedule_that_holds_to_the_end_never_moves() -> None:
    settings = KnobSettings(kind="schedule", value=0.5, hold_frac=1.0, run_steps=10)
    assert {knob.scheduled(step, settings) for step in range(30)} == {0.5}


def test_the_knob_rises_while_the_loss_stalls_and_falls_while_it_improves() -> None:
    assert after([5.0] * 4, MIDDLE) == 0.0  # three stalled counts are not more than three
    assert after([5.0] * 5, MIDDLE) == pytest.approx(0.3 * 0.3)
    assert after([5.0 - 0.5 * step for step in range(4)], MIDDLE) == pytest.approx(-0.18)


def test_a_concentrated_gate_raises_the_knob_and_a_uniform_one_lowers_it() -> None:
    concentrated, uniform = [1.0] + [0.0] * 7, [1.0] * 8
    assert after([5.0], concentrated) == pytest.approx(0.3 * 0.1)
    assert after([5.0], uniform) == pytest.approx(-0.3 * 0.1)


def test_the_knob_moves_on_micro_ticks_only_but_remembers_every_loss() -> None:
    state = knob.start(KnobSettings(kind="rule", run_steps=100))
    quiet = turn(5.0, [1.0] * 8, state, micro=False)
    assert quiet["knob_kappa"] == 0
    assert quiet["knob_loss_sum"] / quiet["knob_loss_weight"] == pytest.approx(5.0)


@given(
    losses=st.lists(st.floats(0.0, 12.0, width=32), min_size=1, max_size=40),
    mass=st.lists(st.floats(0.0, 9.0, width=32), min_size=8, max_size=8),
)
def test_the_rule_stays_in_bounds_and_finite(losses: list[float], mass: list[float]) -> None:
    assert -1.0 <= after(losses, mass) <= 1.0


@pytest.mark.parametrize("law", CONTROLLING)
def test_the_knob_scales_pressure_and_temperature_by_their_exponents(
    law: str, law_settings: Callable[..., Any], random_observations: Callable[..., list[Observation]]
) -> None:
    fields, pressures = [], []
    for value in (0.0, 0.5):
        settings = law_settings(law, temperature="structural")
        settings.knob.value = value
        controller = Chronovisor(settings, 3, 6)
        for observation in random_observations(6):
            field = controller.tick(observation)
        fields.append(field)
        pressures.append(controller.signals["pressure_LE"])
        settings.knob.value = 0.0
    heat_LE = fields[1].log_temperature_LE - fields[0].log_temperature_LE
    torch.testing.assert_close(heat_LE, torch.full_like(heat_LE, 0.4 * 0.5))
    # The documented law divides its pressure by the temperature, which the knob turns as well.
    expected = math.exp(0.5 * 0.5 - (0.4 * 0.5 if law == "documented" else 0.0))
    torch.testing.assert_close(pressures[1], pressures[0] * expected)


@pytest.mark.parametrize("law", CONTROLLING)
def test_without_a_temperature_the_knob_heats_nothing(
    law: str, law_settings: Callable[..., Any], random_observations: Callable[..., list[Observation]]
) -> None:
    controller = Chronovisor(law_settings(law, knob="schedule"), 3, 6)
    for observation in random_observations(6):
        assert not controller.tick(observation).log_temperature_LE.any()
    assert controller.signals["kappa_L"].shape == (3,)


def test_only_the_rule_asks_for_the_loss(law_settings: Callable[..., Any]) -> None:
    asks = {kind: Chronovisor(law_settings("chronovisor", knob=kind), 3, 6).needs_loss for kind in ("fixed", "rule")}
    assert asks == {"fixed": False, "rule": True}


def test_a_run_under_the_rule_turns_the_knob_by_its_own_loss(train: Callable[..., Any]) -> None:
    finished = train("chrono/knob=rule", "trainer.log_every_steps=1")
    kappas: list[float] = finished.column("chrono/kappa")
    assert len(kappas) == 8
    assert any(kappas)
    losses = torch.tensor(finished.column("train/loss"))
    saved: dict[str, Tensor] = finished.controller["controller"]["state"]
    weights = 0.9 ** torch.arange(7, -1, -1)
    expected = (weights * losses).sum() / weights.sum()
    assert (saved["knob_loss_sum"] / saved["knob_loss_weight"]).item() == pytest.approx(expected.item(), rel=1e-5)
