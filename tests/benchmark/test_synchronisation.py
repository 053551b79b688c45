"""What makes the host wait is counted, and a controlled step between two logged ones does none of it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from chronomoe.benchmark.job import Job
from chronomoe.benchmark.synchronisation import host_synchronisations
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Trainee


def test_reading_a_number_and_indexing_by_a_mask_are_counted() -> None:
    x = torch.arange(4.0)
    assert host_synchronisations(lambda: x + 1) == {}
    assert host_synchronisations(lambda: [x.sum().item(), float(x[0])]) == {"aten::_local_scalar_dense": 2}
    assert host_synchronisations(lambda: x[x > 1]) == {"aten::nonzero": 1}


def test_a_controlled_step_between_logged_ones_reads_no_number(tiny_job: Callable[..., Job]) -> None:
    trainee = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job())
    trainee.run(1)
    assert trainee.synchronisations() == {}
