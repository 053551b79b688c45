"""AdamW with the clipping inside it: the reference is torch's optimizer after torch's clipping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from chronomoe.model.products import keep_working_copy, working, working_copy_of
from chronomoe.training import adamw
from chronomoe.training.adamw import AdamW, global_norm

SHAPES = ((3, 5), (7,), (40, 13), (64,), (1,))
"""On both sides of the small slices of `sliced`, and a multiple of them."""
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "fused": True}
INFINITE = float("inf")


@pytest.fixture(params=[False, True], ids=["whole", "sliced"])
def sliced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights are larger than a slice, as those of a real model are."""
    if request.param:
        monkeypatch.setattr(adamw, "SLICE", 32)
        monkeypatch.setattr(adamw, "NORM_SLICE", 16)
    return request.param


def weights(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(step: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Larger than a limit of 1 on even steps, smaller on odd ones."""
    generator = torch.Generator().manual_seed(1 + step)
    size = 3.0 if step % 2 == 0 else 0.01
    return [(size * torch.randn(shape, generator=generator)).to(dtype) for shape in SHAPES]


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def give(parameters: list[nn.Parameter], found: list[Tensor]) -> None:
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient.clone()


def ours_step(optimizer: AdamW, parameters: list[nn.Parameter], found: list[Tensor], limit: float | None) -> Any:
    give(parameters, found)
    norm = None if limit is None else optimizer.clip(limit)
    optimizer.step()
    return norm


def torch_step(optimizer: Any, parameters: list[nn.Parameter], found: list[Tensor], limit: float | None) -> Any:
    give(parameters, [gradient.float() for gradient in found])
    norm = None if limit is None else torch.nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()
    return norm


def assert_alike(ours: list[nn.Parameter], theirs: list[nn.Parameter], **tolerance: float) -> None:
    for ours_p, theirs_p in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_p.data, theirs_p.data, **(tolerance or {"rtol": 1e-6, "atol": 1e-7}))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("limit", [None, 1.0, INFINITE])
def test_steps_equal_torchs_after_torchs_clipping(sliced: bool, limit: float | None, fused: bool) -> None:
    ours, theirs = weights(), weights()
    settings = {**SETTINGS, "fused": fused}
    one, other = AdamW(groups(ours), **settings), torch.optim.AdamW(groups(theirs), **settings)
    for step in range(6):
        norm = ours_step(one, ours, gradients(step), limit)
        expected = torch_step(other, theirs, gradients(step), limit)
        if limit is not None:
            torch.testing.assert_close(norm, expected)
    assert_alike(ours, theirs)
    for ours_p, theirs_p in zip(ours, theirs, strict=True):
        assert one.state[ours_p]["step"] == other.state[theirs_p]["step"] == 6
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one.state[ours_p][moment], other.state[theirs_p][moment])


def test_without_clipping_the_step_is_bitwise_torchs() -> None:
    ours, theirs = weights(), weights()
    one, other = AdamW(groups(ours), **SETTINGS), torch.optim.AdamW(groups(theirs), **SETTINGS)
    for step in range(3):
        ours_step(one, ours, gradients(step), None)
        torch_step(other, theirs, gradients(step), None)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("limit", [None, 1.0])
def test_every_group_follows_its_own_settings_also_when_they_change(sliced: bool, limit: float | None) -> None:
    """As a schedule changes the learning rate between steps."""
    ours, theirs = weights(), weights()
    own: list[dict[str, Any]] = [
        {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
        {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-2, "weight_decay": 0.5},
    ]
    one, other = (
        kind([{"params": p[:2], **own[0]}, {"params": p[2:], **own[1]}], fused=True)
        for kind, p in ((AdamW, ours), (torch.optim.AdamW, theirs))
    )
    for step in range(4):
        for optimizer in (one, other):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        ours_step(one, ours, gradients(step), limit)
        torch_step(other, theirs, gradients(step), limit)
    assert_alike(ours, theirs)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_bf16_gradients_count_as_the_fp32_numbers_they_are(sliced: bool, limit: float | None) -> None:
    ours, theirs = weights(), weights()
    for parameter in ours:
        parameter.grad_dtype = torch.bfloat16
    one, other = AdamW(groups(ours), **SETTINGS), torch.optim.AdamW(groups(theirs), **SETTINGS)
    for step in range(6):
        found = gradients(step, torch.bfloat16)
        ours_step(one, ours, found, limit)
        torch_step(other, theirs, found, limit)
        assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(ours, found, strict=True))
    # The norm of bf16 gradients is rounded per slice, so a clipped step differs by that much.
    assert_alike(ours, theirs, rtol=1e-3 if limit else 1e-6, atol=1e-4 if limit else 1e-7)
    if limit is None:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_norm_of_bf16_gradients_is_that_of_float64_within_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "NORM_SLICE", 256)
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator).bfloat16() for shape in ((600, 100), (301,), (9, 9))]
    exact = torch.sqrt(sum(gradient.double().square().sum() for gradient in found))
    norm = global_norm(found)
    assert norm.dtype == torch.float32
    assert abs(norm.double() / exact - 1) < 1e-3


@given(
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.bfloat16, torch.float32]), min_size=6, max_size=6),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    seed=st.integers(0, 999),
)
def test_the_norm_of_few_gradients_is_off_by_a_rounding_of_bf16_at_most(
    sizes: list[int], dtypes: list[torch.dtype], scale: float, seed: int
) -> None:
    """Few numbers make few slices, whose roundings do not even out: half a unit of the last of 8 bits, 2^-8."""
    generator = torch.Generator().manual_seed(seed)
    found = [(scale * torch.randn(n, generator=generator)).to(dtype) for n, dtype in zip(sizes, dtypes, strict=False)]
    exact = torch.sqrt(sum(gradient.double().square().sum() for gradient in found))
    assert abs(global_norm(found).double() / exact - 1) < 2**-8 + 1e-6


def test_the_norm_of_nothing_and_of_zeros_is_zero() -> None:
    assert global_norm([]) == 0.0
    assert global_norm([torch.zeros(3), torch.zeros(2, 2)]) == 0.0


def test_a_gradient_that_is_not_contiguous_is_taken_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "SLICE", 8)
    ours, theirs = weights(((6, 4),)), weights(((6, 4),))
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)).T
    ours[0].grad, theirs[0].grad = gradient, gradient
    AdamW(ours, **SETTINGS).step()
    torch.optim.AdamW(theirs, **{**SETTINGS, "fused": False}).step()  # torch's fused kernel takes it in memory's order
    assert_alike(ours, theirs)


def test_a_weight_that_is_not_contiguous_is_refused_rather_than_left_as_it_was() -> None:
    weight = nn.Parameter(torch.ones(4, 6).T)
    weight.grad = torch.ones(6, 4)
    with pytest.raises(RuntimeError, match="view"):
        AdamW([weight], **SETTINGS).step()


@pytest.mark.parametrize("setting", ["amsgrad", "maximize"])
def test_a_setting_that_the_slices_do_not_know_is_refused_rather_than_ignored(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        AdamW(weights(), **SETTINGS, **{setting: True})
    AdamW(weights(), **SETTINGS, **{setting: False})


def test_clipping_acts_on_one_step_only() -> None:
    ours, theirs = weights(), weights()
    one, other = AdamW(groups(ours), **SETTINGS), torch.optim.AdamW(groups(theirs), **SETTINGS)
    for step, limit in enumerate((0.1, None, 0.1, None)):
        ours_step(one, ours, gradients(2 * step), limit)
        torch_step(other, theirs, gradients(2 * step), limit)
    assert_alike(ours, theirs)


def test_zero_gradients_are_neither_scaled_up_nor_not_numbers() -> None:
    ours, theirs = weights(), weights()
    one, other = AdamW(groups(ours), **SETTINGS), torch.optim.AdamW(groups(theirs), **SETTINGS)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    assert ours_step(one, ours, zeros, 1.0) == 0.0
    torch_step(other, theirs, zeros, 1.0)
    assert_alike(ours, theirs)
    assert all(parameter.isfinite().all() for parameter in ours)


def test_weights_without_a_gradient_stay_as_they_are() -> None:
    parameters = weights()
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = AdamW(groups(parameters), **SETTINGS)
    assert optimizer.clip(1.0) == 0.0
    optimizer.step()
    parameters[0].grad = torch.ones_like(parameters[0])
    torch.testing.assert_close(optimizer.clip(1.0), torch.tensor(15.0).sqrt())
    optimizer.step()
    assert not torch.equal(parameters[0], before[0])
    assert all(torch.equal(now, then) for now, then in zip(parameters[1:], before[1:], strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_closure_runs_once_and_before_the_scale_is_read(fused: bool) -> None:
    """Lightning computes gradients and clips them inside the closure."""
    ours, theirs, calls = weights(), weights(), []
    settings = {**SETTINGS, "fused": fused}
    one, other = AdamW(groups(ours), **settings), torch.optim.AdamW(groups(theirs), **settings)

    def closure() -> float:
        assert torch.is_grad_enabled()
        give(ours, gradients(0))
        one.clip(1.0)
        calls.append(1)
        return 7.0

    assert one.step(closure) == 7.0
    assert len(calls) == 1
    torch_step(other, theirs, gradients(0), 1.0)
    assert_alike(ours, theirs)
    ours_step(one, ours, gradients(2), None)
    torch_step(other, theirs, gradients(2), None)
    assert_alike(ours, theirs)


@pytest.mark.parametrize("ours_first", [True, False])
def test_its_state_and_torchs_are_interchangeable(ours_first: bool) -> None:
    """A run saved by one goes on with the other, over files too."""
    reference, changing = weights(), weights()
    kinds = (AdamW, torch.optim.AdamW) if ours_first else (torch.optim.AdamW, AdamW)
    whole, first = kinds[1](groups(reference), **SETTINGS), kinds[0](groups(changing), **SETTINGS)
    for step in range(3):
        torch_step(whole, reference, gradients(step), None)
        torch_step(first, changing, gradients(step), None)
    state = first.state_dict()
    assert state.keys() == whole.state_dict().keys()
    second = kinds[1](groups(changing), lr=0.5)
    second.load_state_dict(state)
    for step in range(3, 6):
        torch_step(whole, reference, gradients(step), None)
        torch_step(second, changing, gradients(step), None)
    assert all(torch.equal(a, b) for a, b in zip(reference, changing, strict=True))


@pytest.mark.parametrize("half", [True, False], ids=["bf16 gradients", "fp32 gradients"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_working_copies_are_the_new_weights_and_not_stale(sliced: bool, limit: float | None, half: bool) -> None:
    parameters = weights()
    for parameter in parameters:
        keep_working_copy(parameter, torch.bfloat16, half_gradient=half)
    optimizer = AdamW(groups(parameters), **SETTINGS)
    for step in range(3):
        ours_step(optimizer, parameters, gradients(step, torch.bfloat16 if half else torch.float32), limit)
        for parameter in parameters:
            copy = working_copy_of(parameter)
            assert copy is not None
            assert copy.is_of(parameter)
            assert torch.equal(copy.tensor, parameter.detach().to(torch.bfloat16))
            assert working(parameter, torch.bfloat16).data_ptr() == copy.tensor.data_ptr()


def test_a_working_copy_of_a_weight_that_others_change_is_cast_again() -> None:
    (parameter,) = weights(((4, 4),))
    keep_working_copy(parameter, torch.bfloat16, half_gradient=True)
    optimizer = AdamW([parameter], **SETTINGS)
    parameter.grad = torch.ones(4, 4, dtype=torch.bfloat16)
    optimizer.step()
    with torch.no_grad():
        parameter.add_(1.0)
    copy = working_copy_of(parameter)
    assert copy is not None
    assert not copy.is_of(parameter)
    assert torch.equal(working(parameter, torch.bfloat16), parameter.detach().bfloat16())


@pytest.mark.parametrize("limit", [None, 1.0])
def test_the_path_that_is_not_fused_leaves_working_copies_to_be_cast(limit: float | None) -> None:
    """torch's loop changes weights as anybody does: their copies are stale, and the next use casts them."""
    ours, theirs = weights(), weights()
    for parameter in ours:
        keep_working_copy(parameter, torch.bfloat16, half_gradient=False)
    settings = {**SETTINGS, "fused": False}
    one, other = AdamW(groups(ours), **settings), torch.optim.AdamW(groups(theirs), **settings)
    ours_step(one, ours, gradients(0), limit)
    torch_step(other, theirs, gradients(0), limit)
    assert_alike(ours, theirs)
    for parameter in ours:
        assert torch.equal(working(parameter, torch.bfloat16), parameter.detach().bfloat16())
