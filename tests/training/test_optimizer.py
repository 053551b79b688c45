"""Learning-rate schedules as functions of the step, and which parameters decay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from chronomoe.model.lm import LanguageModel
from chronomoe.training.optimizer import build_optimizer, decay_groups, lr_factor
from chronomoe.training.settings import OptimSettings

STEPS = 200


def factors(**settings: object) -> list[float]:
    optim = OptimSettings(lr=1e-3, **settings)  # type: ignore[arg-type]
    return [lr_factor(step, STEPS, optim) for step in range(STEPS)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_rises_linearly_from_above_zero_to_the_peak(schedule: str) -> None:
    rates = factors(schedule=schedule, warmup_frac=0.1)
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert max(rates) == 1.0


def test_cosine_ends_at_its_floor_and_is_halfway_in_the_middle() -> None:
    rates = factors(schedule="cosine", warmup_frac=0.0, min_lr_frac=0.2)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates, reverse=True)
    assert (rates[99] + rates[100]) / 2 == pytest.approx((1 + 0.2) / 2)
    step = 50
    assert rates[step] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / (STEPS - 1))))


def test_wsd_stays_at_the_peak_and_then_falls_linearly_to_its_floor() -> None:
    rates = factors(schedule="wsd", warmup_frac=0.1, decay_frac=0.25, min_lr_frac=0.1)
    assert set(rates[20:150]) == {1.0}
    assert rates[-1] == pytest.approx(0.1)
    falls = [a - b for a, b in itertools.pairwise(rates[150:])]
    assert falls == pytest.approx([falls[0]] * len(falls))
    assert falls[0] > 0


def test_constant_stays() -> None:
    assert set(factors(schedule="constant", warmup_frac=0.0)) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("max_steps", [1, 2, 3])
@pytest.mark.parametrize("warmup_frac", [0.0, 0.5, 1.0])
def test_the_shortest_runs_have_positive_rates(schedule: str, max_steps: int, warmup_frac: float) -> None:
    optim = OptimSettings(lr=1e-3, schedule=schedule, warmup_frac=warmup_frac, decay_frac=0.0)
    assert all(0 < lr_factor(step, max_steps, optim) <= 1 for step in range(max_steps + 1))


def test_matrices_decay_norms_do_not_and_every_parameter_is_in_one_group(
    tiny_model: Callable[..., LanguageModel],
) -> None:
    model = tiny_model()
    decayed, kept = decay_groups(model.parameters(), 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in kept["params"]} == {n for n in names.values() if n.endswith("norm.weight")}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    assert any("router" in names[id(p)] for p in decayed["params"])
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_frozen_parameters_are_left_out(tiny_model: Callable[..., LanguageModel]) -> None:
    model = tiny_model()
    model.embedding.weight.requires_grad_(False)
    assert all(
        p is not model.embedding.weight for group in decay_groups(model.parameters(), 0.1) for p in group["params"]
    )


def test_fused_and_plain_steps_agree(tiny_model: Callable[..., LanguageModel]) -> None:
    optim = OptimSettings(lr=1e-2)
    stepped = []
    for fused in (True, False):
        model = tiny_model()
        optimizer = build_optimizer(model, optim, fused=fused)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        stepped.append(model.state_dict())
    for name, tensor in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], tensor, msg=name)
