"""What makes the host wait is counted, and a controlled step between two logged ones does none of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from chronomoe.benchmark.job import Job
from chronomoe.benchmark.synchronisation import host_synchronisations
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Trainee
from chronomoe.model import experts
from chronomoe.training.autotune import Kernels, use


def test_reading_a_number_and_indexing_by_a_mask_are_counted() -> None:
    x = torch.arange(4.0)
    assert host_synchronisations(lambda: x + 1) == {}
    assert host_synchronisations(lambda: [x.sum().item(), float(x[0])]) == {"aten::_local_scalar_dense": 2}
    assert host_synchronisations(lambda: x[x > 1]) == {"aten::nonzero": 1}


def grouped_mm_of_a_gpu(x_ND: Tensor, weight_EDF: Tensor, *, offs: Tensor) -> Tensor:
    """Stands in for torch's, which on a processor reads where each group ends."""
    owner_N = torch.searchsorted(offs, torch.arange(len(x_ND)), right=True)
    mine_EN1 = (owner_N == torch.arange(len(weight_EDF))[:, None])[..., None]
    return ((x_ND @ weight_EDF) * mine_EN1).sum(dim=0)


def test_a_controlled_step_between_logged_ones_reads_no_number(
    tiny_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels of a GPU; a processor's read the sizes of their blocks, which are in host memory anyway.
    Without AdamW, whose fused form reads its step counts where they are."""
    monkeypatch.setattr(experts, "grouped_mm", grouped_mm_of_a_gpu)
    learner = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job()).learner
    use(learner.module, Kernels(experts="grouped", attention="sdpa"))  # type: ignore[arg-type]
    ids_BS = torch.zeros(2, 16, dtype=torch.int64)

    def step(fetch: bool) -> None:
        learner.losses(ids_BS, ids_BS).total.backward()
        torch.nn.utils.clip_grad_norm_(learner.module.parameters(), 1.0)
        assert learner.control is not None
        learner.control(fetch)

    step(True)
    assert host_synchronisations(lambda: step(False)) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_whole_controlled_step_on_a_gpu_never_waits_for_it(tiny_job: Callable[..., Job]) -> None:
    """Forward, backward, clipping, controller, metrics and AdamW, as training runs them between logged steps."""
    job = replace(tiny_job(), device="cuda")
    trainee = Trainee(System("chronomoe", "ours", "bf16", control=True), job)
    trainee.run(3)
    assert trainee.synchronisations() == {}
