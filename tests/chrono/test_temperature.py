"""The temperature field. The documented form is tested with its law."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.chrono import temperature
from chronomoe.chrono.clocks import Ticks
from chronomoe.chrono.temperature import TemperatureSettings

MICRO, BETWEEN = Ticks(1, micro=True, macro=False), Ticks(1, micro=False, macro=False)
UNEVEN = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
NO_COHERENCE = torch.tensor(0.0)
Advance = Callable[[int], torch.Tensor]


def settle(settings: TemperatureSettings, share_LE: torch.Tensor, ticks: int) -> torch.Tensor:
    state = temperature.start(*share_LE.shape, settings)
    for _ in range(ticks):
        state = temperature.step(state, share_LE, NO_COHERENCE, MICRO, settings)
    return temperature.log_temperature(state, share_LE)


def test_off_has_no_state_and_a_zero_field() -> None:
    settings = TemperatureSettings(kind="off")
    assert temperature.start(2, 4, settings) == {}
    assert not settle(settings, UNEVEN, 3).any()


def test_structural_temperature_tends_to_its_aim_at_its_rate() -> None:
    settings = TemperatureSettings(kind="structural", eta=0.1, bound=0.5)
    aim_LE = 0.5 * (4 * UNEVEN - 1).clamp(-1, 1)
    for ticks in (1, 5, 200):
        expected_LE = (1 - 0.9**ticks) * aim_LE
        torch.testing.assert_close(settle(settings, UNEVEN, ticks), expected_LE, rtol=1e-4, atol=1e-5)


@given(loads=st.lists(st.integers(0, 100), min_size=5, max_size=5).filter(any), ticks=st.integers(1, 30))
def test_structural_temperature_is_zero_mean_bounded_and_hotter_for_the_more_used(loads: list[int], ticks: int) -> None:
    settings = TemperatureSettings(kind="structural", eta=0.2, bound=0.5)
    share_LE = torch.tensor([loads]) / sum(loads)
    log_temperature_LE = settle(settings, share_LE, ticks)
    assert log_temperature_LE.mean().abs() < 1e-6
    assert log_temperature_LE.abs().max() <= 2 * 0.5
    assert log_temperature_LE[0, share_LE[0].argsort()].diff().ge(-1e-6).all()


@pytest.mark.parametrize("kind", ["documented", "structural"])
def test_temperatures_move_on_micro_ticks_only(kind: str) -> None:
    settings = TemperatureSettings(kind=kind)
    state = temperature.start(2, 4, settings)
    still = temperature.step(state, UNEVEN, NO_COHERENCE, BETWEEN, settings)
    moved = temperature.step(state, UNEVEN, NO_COHERENCE, MICRO, settings)
    assert all(torch.equal(still[name], tensor) for name, tensor in state.items())
    assert any(not torch.equal(moved[name], tensor) for name, tensor in state.items())


def test_a_rate_of_zero_freezes_the_slow_temperatures() -> None:
    assert not settle(TemperatureSettings(kind="structural", eta=0.0), UNEVEN, 10).any()
    settings = TemperatureSettings(kind="documented", eta=0.0, eta_global=0.0)
    fast_LE = temperature.documented_fast(UNEVEN, NO_COHERENCE)
    torch.testing.assert_close(settle(settings, UNEVEN, 10), fast_LE.log())


def test_the_shared_temperature_follows_at_half_the_rate_of_a_layers_own_unless_told() -> None:
    half, same, other = (
        settle(TemperatureSettings(kind="documented", eta=0.04, eta_global=rate), UNEVEN, 10)
        for rate in (None, 0.02, 0.04)
    )
    assert torch.equal(half, same)
    assert not torch.allclose(half, other, rtol=1e-4)


def test_the_documented_temperature_ignores_how_large_the_imbalance_is() -> None:
    """The published defect, kept: drift is divided by its own maximum."""
    slight_LE = 0.25 + 1e-3 * (UNEVEN - 0.25)
    slight_heat = temperature.documented_fast(slight_LE, NO_COHERENCE).max() / 1.5
    assert slight_heat == pytest.approx(1.3, abs=1e-3)


def test_the_documented_temperature_never_leaves_the_routers_range() -> None:
    settings = TemperatureSettings(kind="documented", eta=1.0, eta_global=1.0)
    log_temperature_LE = settle(settings, UNEVEN, 50)
    assert log_temperature_LE.exp().max() == pytest.approx(10.0)
    assert log_temperature_LE.min() >= 0
