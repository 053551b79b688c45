"""AdamW in slices against torch's, with clipping, half-precision gradients and working copies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from chronomoe.model.products import keep_working_copy, working, working_copy_of
from chronomoe.training import adamw
from chronomoe.training.adamw import AdamW, global_norm

SHAPES = [(7, 9), (5,), (3, 4, 5), (1,)]


@pytest.fixture(autouse=True, params=[4, 2**19], ids=["many slices", "one slice"])
def _slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "SLICE", request.param)
    monkeypatch.setattr(adamw, "NORM_SLICE", max(1, request.param // 2))


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int, dtype: torch.dtype = torch.float32) -> None:
    """Already rounded to bf16, so that both sides see the same numbers."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16().to(dtype)


def both(parameters: list[nn.Parameter], **settings: object) -> tuple[AdamW, torch.optim.AdamW, list[nn.Parameter]]:
    theirs = copy.deepcopy(parameters)
    options = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True} | settings
    return AdamW(parameters, **options), torch.optim.AdamW(theirs, **options), theirs  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [None, 0.5, 1e6, float("inf")], ids=["unclipped", "clipped", "below it", "no limit"])
@pytest.mark.parametrize("half", [False, True], ids=["fp32 gradients", "bf16 gradients"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_weights_and_moments_are_torchs(limit: float | None, half: bool, fused: bool) -> None:
    if half and not fused:
        pytest.skip("gradients stay in bf16 only for the fused optimizer on a processor")
    ours = weights()
    if half:
        for parameter in ours:
            parameter.grad_dtype = torch.bfloat16  # type: ignore[attr-defined]
    optimizer, reference, theirs = both(ours, fused=fused)
    for step in range(4):
        set_gradients(ours, step, torch.bfloat16 if half else torch.float32)
        set_gradients(theirs, step)
        if limit is not None:
            norm = optimizer.clip(limit)
            expected = nn.utils.clip_grad_norm_(theirs, limit)
            torch.testing.assert_close(norm, expected, rtol=4e-3 if half else 1e-5, atol=0)
        optimizer.step()
        reference.step()
    tolerance = 2e-3 if half and limit == 0.5 else 1e-5  # a norm of bf16 slices is rounded
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(
                optimizer.state[mine][name], reference.state[other][name], rtol=4 * tolerance, atol=4 * tolerance
            )


def test_clipping_acts_on_one_step() -> None:
    ours = weights()
    optimizer, reference, theirs = both(ours)
    for step in range(2):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        if step == 0:
            optimizer.clip(0.1)
            nn.utils.clip_grad_norm_(theirs, 0.1)
        optimizer.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_closure_runs_before_the_clipping_it_sets_is_read() -> None:
    ours = weights()
    optimizer, reference, theirs = both(ours)
    set_gradients(theirs, 0)
    nn.utils.clip_grad_norm_(theirs, 0.1)
    reference.step()

    def closure() -> float:
        set_gradients(ours, 0)
        optimizer.clip(0.1)
        return 1.5

    assert optimizer.step(closure) == 1.5
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_a_missing_gradient_leaves_its_weight_and_a_zero_one_only_decays_it() -> None:
    ours = weights()
    before = [parameter.detach().clone() for parameter in ours]
    optimizer, _, _ = both(ours)
    ours[0].grad = torch.zeros_like(ours[0])
    assert optimizer.clip(1.0) == 0
    optimizer.step()
    torch.testing.assert_close(ours[0].detach(), before[0] * (1 - 0.1 * 0.1))
    assert all(torch.equal(parameter, old) for parameter, old in zip(ours[1:], before[1:], strict=True))


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_state_goes_from_one_to_the_other_and_the_run_goes_on_alike(ours_first: bool) -> None:
    parameters = weights()
    ours, theirs, other_parameters = both(parameters)
    first, second = ((ours, parameters), (theirs, other_parameters))[:: 1 if ours_first else -1]
    set_gradients(first[1], 0)
    first[0].step()
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    with torch.no_grad():
        for source, target in zip(first[1], second[1], strict=True):
            target.copy_(source)
    for optimizer, of in (first, second):
        set_gradients(of, 1)
        optimizer.step()
    for mine, other in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_a_working_copy_follows_its_weight_and_is_not_cast_again() -> None:
    ours = weights()
    keep_working_copy(ours[0], torch.bfloat16, half_gradient=True)
    optimizer, _, _ = both(ours)
    (working(ours[0], torch.bfloat16).float() ** 2).sum().backward()
    assert ours[0].grad is not None
    assert ours[0].grad.dtype == torch.bfloat16
    optimizer.step()
    kept = working_copy_of(ours[0])
    assert kept is not None
    assert kept.is_of(ours[0])
    assert torch.equal(kept.tensor, ours[0].detach().bfloat16())


def test_a_norm_of_bf16_is_accurate_where_it_is_taken_of_many_slices() -> None:
    values = torch.randn(40_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(global_norm([values]).double(), values.double().norm(), rtol=4e-3, atol=0)
