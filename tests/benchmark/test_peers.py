"""Other implementations, where they are installed: our weights give our logits, and a step trains them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chronomoe.benchmark.job import Job
from chronomoe.benchmark.systems import System, every_system
from chronomoe.benchmark.trainee import LOGIT_TOLERANCE, Trainee

PEERS = [system for system in every_system() if system.peer]


@pytest.mark.parametrize("system", PEERS, ids=lambda system: system.key)
def test_a_peer_begins_where_we_begin_and_learns(tiny_job: Callable[..., Job], system: System) -> None:
    pytest.importorskip(system.package)
    trainee = Trainee(system, tiny_job())
    if system.same_function:
        assert trainee.logit_difference is not None
        assert trainee.logit_difference < LOGIT_TOLERANCE
    trainee.run(1)
    before = trainee.report().loss
    trainee.run(4)
    assert trainee.report().loss < before


@pytest.mark.parametrize(("name", "keeps"), [("transformers grouped_mm", 0), ("transformers grouped_mm kept", 1)])
def test_only_the_system_that_says_so_keeps_freed_memory(
    tiny_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, name: str, keeps: int
) -> None:
    pytest.importorskip("transformers")
    asked: list[None] = []
    monkeypatch.setattr("chronomoe.benchmark.mixtral_peer.keep_freed_memory", lambda: asked.append(None))
    system = next(s for s in every_system() if s.name == name and s.dtype == "fp32")
    trainee = Trainee(system, tiny_job())
    assert len(asked) == keeps
    assert trainee.learner.module.config._experts_implementation == "grouped_mm"


def test_transformers_first_loss_is_ours_with_its_own_balancing_on_top(tiny_job: Callable[..., Job]) -> None:
    pytest.importorskip("transformers")
    theirs = Trainee(next(s for s in PEERS if s.key == "transformers_eager_fp32"), tiny_job())
    ours = Trainee(System("chronomoe", "ours", "fp32", control=False), tiny_job())
    batch_BS = ours.batch_BS
    found = [t.learner.losses(batch_BS[:, :-1], batch_BS[:, 1:]) for t in (theirs, ours)]
    assert found[0].cross_entropy.item() == pytest.approx(found[1].cross_entropy.item(), abs=1e-5)
    for losses, balanced in zip(found, (2.0, 1.0), strict=True):  # what a balanced layer reads: top_k there, 1 here
        assert (losses.total - losses.cross_entropy).item() == pytest.approx(0.01 * balanced, rel=0.3)


def test_a_peer_that_computes_something_else_is_refused(tiny_job: Callable[..., Job]) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(RuntimeError, match="its logits differ"):
        Trainee(PEERS[0], tiny_job("router.gate=softmax", "model.init_std=0.2"))
