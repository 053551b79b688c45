"""Time goes to the part it was spent in, backward too, and the parts add up to the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chronomoe.benchmark.breakdown import attribute, profile_parts
from chronomoe.benchmark.job import Job
from chronomoe.benchmark.parts import PARTS, PREFIX, part
from chronomoe.benchmark.profiling import record
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Trainee
from chronomoe.model.lm import LanguageModel

NAP = 0.03


class SleepsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        time.sleep(NAP)
        return gradient * 1.0


def profiled(step: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """Seconds of the parts of a step, and of the whole of it."""

    def run() -> None:
        with part("rest"):
            step()

    events = record(run)
    whole = max(event.cpu_time_total for event in events if event.name == PREFIX + "rest")
    return attribute(events), whole / 1e6


def test_time_belongs_to_the_innermost_part_and_the_parts_add_up() -> None:
    def step() -> None:
        time.sleep(NAP)
        with part("dispatch"):
            time.sleep(2 * NAP)
            with part("experts"):
                time.sleep(3 * NAP)

    seconds, whole = profiled(step)
    expected = {"rest": NAP, "dispatch": 2 * NAP, "experts": 3 * NAP}
    for name in PARTS:
        assert seconds[name] == pytest.approx(expected.get(name, 0.0), abs=NAP / 2)
    assert sum(seconds.values()) == pytest.approx(whole, rel=1e-3)


def test_a_backward_operation_belongs_to_the_part_of_its_forward_one() -> None:
    x = torch.ones(4, requires_grad=True)

    def step() -> None:
        with part("router"):
            y = x * 2
        with torch.no_grad():  # makes no node, but sees the same number as the next that does
            y.sum()
        with part("experts"):
            y = SleepsBackward.apply(y)
        with part("attention"):
            y = y * 3
        y.sum().backward()

    seconds, whole = profiled(step)
    assert NAP <= seconds["experts"] < 1.5 * NAP
    assert max(seconds["router"], seconds["attention"], seconds["rest"]) < NAP / 2
    assert sum(seconds.values()) == pytest.approx(whole, rel=1e-3)


def test_products_are_followed_through_the_engine() -> None:
    """Two towers, one of them eight times as wide: nine tenths of forward and backward are its."""
    towers = nn.ModuleDict({"experts": nn.Linear(256, 4096), "router": nn.Linear(256, 8)})
    x = torch.randn(512, 256)

    def step() -> None:
        total = torch.zeros(())
        for name, tower in towers.items():
            with part(name):
                total = total + tower(x).square().mean()
        total.backward()

    step()
    seconds, _ = profiled(step)
    assert seconds["experts"] > 10 * seconds["router"] > 0


def test_our_model_is_marked_from_outside_and_every_part_has_time(tiny_job: Callable[..., Job]) -> None:
    trainee = Trainee(System("chronomoe", "ours", "fp32", control=True), tiny_job())
    model = trainee.learner.module
    assert isinstance(model, LanguageModel)
    experts = model.blocks[0].ffn.experts
    plain = experts.forward
    experts.forward = lambda *arguments: SleepsBackward.apply(plain(*arguments))  # type: ignore[method-assign]
    seconds = profile_parts(model, lambda: trainee.step(trainee.batch_BS), 2, "cpu")
    assert set(seconds) == set(PARTS)
    assert all(seconds[name] > 0 for name in PARTS)
    assert NAP <= seconds["experts"] < 2 * NAP


def test_marking_changes_no_number(tiny_job: Callable[..., Job]) -> None:
    losses = []
    for profiles in (False, True):
        trainee = Trainee(System("chronomoe", "ours", "fp32", control=False), tiny_job())
        if profiles:
            trainee.breakdown(1)  # two steps: one to warm up
        else:
            trainee.run(2)
        losses.append(trainee.paired(3))
    assert losses[0] == losses[1]
