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
    """Without AdamW, whose fused form reads its step counts where they are in host memory anyway."""
    learner = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job()).learner
    ids_BS = torch.zeros(2, 16, dtype=torch.int64)

    def step(fetch: bool) -> None:
        learner.losses(ids_BS, ids_BS).total.backward()
        torch.nn.utils.clip_grad_norm_(learner.module.parameters(), 1.0)
        assert learner.control is not None
        learner.control(fetch)

    step(True)
    assert host_synchronisations(lambda: step(False)) == {}
