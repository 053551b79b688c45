"""What is watched beside the law: it remembers across a resume, and reads the form of phi that its router defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from chronomoe.chrono import phi
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.watch import Watch

Observations = Callable[..., list[Observation]]
PARTNERS = {"chrono/phi_loo", "chrono/phi_excess"}


def test_watching_goes_on_where_it_stopped(random_observations: Observations) -> None:
    observations, bias_LE = random_observations(9), torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    whole, resumed = (Watch(3, 6, phi=True, alone=False) for _ in range(2))
    for observation in observations:
        whole.see(observation, bias_LE)
    stopped = Watch(3, 6, phi=True, alone=False)
    for observation in observations[:4]:
        stopped.see(observation, bias_LE)
    resumed.state = dict(stopped.state)
    for observation in observations[4:]:
        resumed.see(observation, bias_LE)
    assert resumed.metrics.keys() == whole.metrics.keys()
    assert all(torch.equal(resumed.metrics[name], value) for name, value in whole.metrics.items())
    for name in whole.state:  # every memory acts on a metric
        forgetful = Watch(3, 6, phi=True, alone=False)
        forgetful.state = stopped.state | {name: torch.ones_like(stopped.state[name]) * 7}
        for observation in observations[4:5]:
            forgetful.see(observation, bias_LE)
        again = Watch(3, 6, phi=True, alone=False)
        again.state = dict(stopped.state)
        again.see(observations[4], bias_LE)
        changed = {key for key, value in again.metrics.items() if not torch.equal(forgetful.metrics[key], value)}
        assert changed or name == "phi_stale_steps_LE", name


@pytest.mark.parametrize("alone", [False, True])
def test_the_headline_is_the_form_that_is_defined(alone: bool, random_observations: Observations) -> None:
    (observation,) = random_observations(1)
    watch = Watch(3, 6, phi=True, alone=alone)
    watch.see(observation, torch.zeros(3, 6))
    reading = phi.decode(observation.readings["phi"])
    assert torch.equal(watch.phi_LE, reading.cross_token_LE if alone else reading.excess_LE)
    assert bool(watch.metrics.keys() & PARTNERS) != alone
    assert watch.metrics["chrono/phi_fast"] == pytest.approx(watch.phi_LE.mean().item(), rel=1e-5)


def test_phi_is_measured_recorded_and_logged_by_a_run_that_asks(train: Callable[..., Any]) -> None:
    finished = train("chrono.phi=true", "trainer.log_every_steps=1")
    assert finished.routing["phi"].shape == (8, 2, 4)
    assert len(finished.column("chrono/phi_excess")) == 8
    assert "phi" not in train(into="plain").routing


def test_a_switch_model_logs_the_cross_token_form_alone(train: Callable[..., Any]) -> None:
    finished = train("chrono.phi=true", "router=switch", "trainer.log_every_steps=1")
    assert len(finished.column("chrono/phi_cross_token")) == 8
    assert not any(key in row for row in finished.rows for key in PARTNERS)


def test_phi_can_open_the_gate_of_the_lens(train: Callable[..., Any]) -> None:
    finished = train("chrono.coherence=phi", "chrono.clocks.macro_period=2", "trainer.log_every_steps=1")
    coherence = finished.controller["controller"]["signals"]["coherence_L"]
    recorded = torch.from_numpy(finished.routing["phi"][-1]).nanmean(dim=-1)
    torch.testing.assert_close(coherence, recorded)
