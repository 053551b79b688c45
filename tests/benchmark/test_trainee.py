"""One system: that it starts from the reference, learns, controls when it shall, and answers with what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chronomoe.benchmark.job import Job
from chronomoe.benchmark.ours import controlled
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Trainee
from chronomoe.config import compose_config
from chronomoe.model.lm import LanguageModel

OURS = System("chronomoe", "ours", "fp32", control=False)


def test_equal_weights_give_equal_logits_and_another_function_is_not_compared(tiny_job: Callable[..., Job]) -> None:
    assert Trainee(OURS, tiny_job()).report().logit_difference == pytest.approx(0.0, abs=1e-6)
    dense = System("dense", "ours", "fp32", same_function=False)
    assert Trainee(dense, tiny_job()).report().logit_difference is None


@pytest.mark.parametrize("nudge", [0.05, float("nan")])
def test_wrong_weights_are_found_by_their_logits(tiny_job: Callable[..., Job], tmp_path: Path, nudge: float) -> None:
    job = tiny_job()
    data = torch.load(job.data)
    data["weights"]["blocks.0.ffn.experts.down_EDF"][0] += nudge
    torch.save(data, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError, match=r"its logits differ from the reference by .*: nothing to compare"):
        Trainee(OURS, replace(job, data=str(tmp_path / "wrong.pt")))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_steps_are_timed_and_lower_the_loss(tiny_job: Callable[..., Job], dtype: str) -> None:
    trainee = Trainee(OURS._replace(dtype=dtype), tiny_job())
    trainee.run(1)
    before = trainee.report().loss
    timing = trainee.run(5)
    assert trainee.report().loss < before
    assert timing.seconds > 0
    assert timing.cpu_seconds > 0
    assert timing.control_seconds == 0


def test_control_is_timed_within_the_step_and_moves_the_field(tiny_job: Callable[..., Job]) -> None:
    trainee = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job())
    timing = trainee.run(2)
    assert 0 < timing.control_seconds < timing.seconds
    assert isinstance(trainee.learner.module, LanguageModel)
    assert trainee.learner.module.expert_bias_LE.abs().max() > 0


def test_paired_steps_see_the_same_batches_whoever_takes_them(tiny_job: Callable[..., Job]) -> None:
    losses = [Trainee(OURS, tiny_job()).paired(30) for _ in range(2)]
    assert losses[0] == losses[1]
    assert losses[0] < Trainee(OURS, tiny_job()).paired(1)


def test_peak_memory_is_above_what_was_held_before(tiny_job: Callable[..., Job]) -> None:
    trainee = Trainee(OURS, tiny_job())
    if trainee.held_before is None:
        pytest.skip("this system does not tell")
    trainee.run(1)
    report = trainee.report()
    assert report.peak_memory_bytes is not None
    assert report.peak_memory_above_imports_bytes == report.peak_memory_bytes - trainee.held_before


def test_a_controlled_step_moves_the_field_and_clears_the_sensor() -> None:
    config = compose_config(["model=mixtral_2x8", "chrono=chronovisor"])
    model = LanguageModel(config.model, config.router).train()
    step = controlled(model, config)
    model(torch.randint(config.model.vocab_size, (1, 16)))
    step(True)
    assert model.expert_bias_LE.abs().max() > 0
    assert not model.sensor_LEC.any()
