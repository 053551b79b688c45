"""The controller's clocks, schedules and memory of signals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from chronomoe.chrono.clocks import ClockSettings, Ticks, strike
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.law import scheduled_pressure
from chronomoe.chrono.observation import Observation
from chronomoe.settings import InputError

MakeSettings = Callable[..., Any]
MakeObservations = Callable[..., list[Observation]]


@pytest.mark.parametrize(("micro", "macro"), [(5, 20), (1, 4), (3, 3), (1, 1)])
def test_clocks_strike_once_a_period_and_micro_with_every_macro(micro: int, macro: int) -> None:
    ticks = [strike(step, ClockSettings(micro_period=micro, macro_period=macro)) for step in range(1, 61)]
    assert [t.step for t in ticks if t.micro] == list(range(micro, 61, micro))
    assert [t.step for t in ticks if t.macro] == list(range(macro, 61, macro))
    assert all(t.micro for t in ticks if t.macro)


def pressure_at(settings: Any, step: int) -> float:
    return scheduled_pressure({"pressure_LE": torch.ones(1, 1)}, Ticks(step, micro=True, macro=False), settings).item()


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [("constant", 0.2, 0.2, 0.2), ("warmup", 0, 0.1, 0.2), ("cosine", 0.2, 0.1, 0)],
)
def test_a_schedule_meets_its_ends_its_middle_and_stays_there(
    schedule: str, first: float, middle: float, last: float, law_settings: MakeSettings
) -> None:
    settings = law_settings("chronovisor", schedule=schedule, schedule_steps=100, pressure_scale=0.2)
    readings = [pressure_at(settings, step) for step in (0, 50, 100, 1000)]
    assert readings == pytest.approx([first, middle, last, last], abs=1e-7)


def test_schedules_are_monotone(law_settings: MakeSettings) -> None:
    for schedule, sign in (("warmup", 1), ("cosine", -1)):
        settings = law_settings("chronovisor", schedule=schedule, schedule_steps=37)
        readings = [pressure_at(settings, step) for step in range(38)]
        assert all(sign * (later - earlier) > 0 for earlier, later in pairwise(readings))


def test_a_pressure_scale_of_zero_removes_the_pressure(
    law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    controller = Chronovisor(law_settings("chronovisor", pressure_scale=0.0, gamma=0.0), 3, 6)
    for observation in random_observations(8):
        assert not controller.tick(observation).bias_LE.any()


def test_what_a_slow_clock_last_said_stays_readable(
    law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    controller = Chronovisor(law_settings("chronovisor"), 3, 6)
    gates = []
    for observation in random_observations(8):
        controller.tick(observation)
        gates.append(controller.signals.get("gate_L"))
    assert gates[:3] == [None] * 3
    assert all(torch.equal(gate, gates[3]) for gate in gates[3:7])
    assert not torch.equal(gates[7], gates[3])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (("documented", {}), "cannot take over from chrono=documented"),
        (("chronovisor", {"temperature": "structural"}), "chrono.temperature .* differ .*log_temperature_LE"),
        (("chronovisor", {"coherence": "stability"}), "chrono.coherence differ .*previous_share_LE"),
    ],
    ids=["law", "temperature", "coherence"],
)
def test_the_state_of_another_control_is_refused(
    saved: tuple[str, dict[str, str]], message: str, law_settings: MakeSettings
) -> None:
    law, change = saved
    state = Chronovisor(law_settings(law, **change), 3, 6).state_dict()
    with pytest.raises(InputError, match=message):
        Chronovisor(law_settings("chronovisor"), 3, 6).load_state_dict(state)


def test_a_saved_state_is_not_moved_by_later_ticks(
    law_settings: MakeSettings, random_observations: MakeObservations
) -> None:
    controller = Chronovisor(law_settings("chronovisor", temperature="documented"), 3, 6)
    for observation in random_observations(6):
        controller.tick(observation)
    saved = controller.state_dict()
    copies = {name: tensor.clone() for name, tensor in saved["state"].items()}
    for observation in random_observations(6, seed=1):
        controller.tick(observation)
    assert saved["step_count"] == 6
    assert all(torch.equal(saved["state"][name], copy) for name, copy in copies.items())
