"""What makes the host wait is counted, and a controlled step between two logged ones does none of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from chronomoe.benchmark.job import Job
from chronomoe.benchmark.learner import Learner
from chronomoe.benchmark.synchronisation import host_synchronisations
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Trainee


def test_reading_a_number_and_indexing_by_a_mask_are_counted() -> None:
    x = torch.arange(4.0)
    assert host_synchronisations(lambda: x + 1) == {}
    assert host_synchronisations(lambda: [x.sum().item(), float(x[0])]) == {"aten::_local_scalar_dense": 2}
    assert host_synchronisations(lambda: x[x > 1]) == {"aten::nonzero": 1}


def test_control_between_logged_steps_makes_the_host_wait_for_nothing(tiny_job: Callable[..., Job]) -> None:
    """A processor's expert kernel reads how many rows each expert got, which are in the host's memory anyway, and so
    does the fused AdamW its step counts: what is counted beyond them is the routing's control and metrics. A step with
    control makes the host wait as often as one without."""
    learner = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job()).learner
    without = Trainee(System("chronomoe", "ours", "fp32", control=False), tiny_job()).learner
    assert learner.control is not None
    ids_BS = torch.zeros(2, 16, dtype=torch.int64)

    def step(learner: Learner, *, fetch: bool = False) -> None:
        learner.losses(ids_BS, ids_BS).total.backward()
        learner.clip(1.0)
        if learner.control is not None:
            learner.control(fetch)
        learner.optimizer.step()
        learner.optimizer.zero_grad()

    step(learner, fetch=True)
    step(without)
    control = learner.control
    assert host_synchronisations(lambda: step(learner)) == host_synchronisations(lambda: step(without))
    learner.losses(ids_BS, ids_BS).total.backward()
    assert host_synchronisations(lambda: learner.clip(1.0)) == {}
    assert host_synchronisations(lambda: control(False)) == {}


def test_the_control_that_is_counted_does_run(tiny_job: Callable[..., Job]) -> None:
    """It would read no number if it did nothing."""
    learner = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job()).learner
    ids_BS, before_LE = torch.zeros(2, 16, dtype=torch.int64), learner.module.expert_bias_LE.clone()
    assert learner.control is not None
    learner.losses(ids_BS, ids_BS)
    learner.control(False)
    assert not torch.equal(learner.module.expert_bias_LE, before_LE)
