"""What a hybrid model computes for a token depends on no later one: section 8, S1.

Axes: B batch, S sequence, D dim, P rows of experts, E experts.
"""

from __future__ import annotations

import pytest
import torch
from hybrid_models import EXACT, SCHEDULES, draw_ids, hybrid_model, worst
from torch import Tensor

from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import ACTIVATIONS

LENGTH = 70
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
ROUTERS = {
    "plain": {},
    "capacity": {"capacity_factor": 0.75},
    "switch with capacity": {"kind": "switch", "gate": "softmax", "top_k": 1, "capacity_factor": 0.75},
    "expert choice": {"kind": "expert_choice", "gate": "softmax", "capacity_factor": 2.0},
}


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts run one row at a time, so that the size of a block cannot change the last bit of a row."""

    def one_row(bank: ExpertBank, x_D: Tensor, expert: int) -> Tensor:
        return bank.down_EDF[expert] @ ACTIVATIONS[bank.activation].join(bank.gate_up_EFD[expert] @ x_D)

    def sorted_rows(bank: ExpertBank, x_PD: Tensor, rows_per_expert_E: Tensor) -> Tensor:
        owners = torch.arange(len(rows_per_expert_E)).repeat_interleave(rows_per_expert_E).tolist()
        rows = [one_row(bank, x_D, e) for x_D, e in zip(x_PD, owners, strict=False)]
        nobodys = x_PD.new_full((len(x_PD) - len(owners), x_PD.shape[1]), float("nan"))
        return torch.cat((torch.stack(rows), nobodys))

    def slots(bank: ExpertBank, x_ECD: Tensor) -> Tensor:
        return torch.stack([torch.stack([one_row(bank, x_D, e) for x_D in x_CD]) for e, x_CD in enumerate(x_ECD)])

    monkeypatch.setattr(ExpertBank, "forward", sorted_rows)
    monkeypatch.setattr(ExpertBank, "batched", slots)


def before_and_after(schedule: dict, router: dict, changed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states in training mode, where drops act, before and after one token is another."""
    model, ids_BS = hybrid_model(router=router, dtype=dtype, **schedule).train(), draw_ids(1, LENGTH)
    other_BS = ids_BS.clone()
    other_BS[0, changed] = (other_BS[0, changed] + 1) % 50
    with torch.no_grad():
        return model(ids_BS).hidden_BSD, model(other_BS).hidden_BSD


@pytest.mark.parametrize("changed", [1, 33, LENGTH - 1])
@by_schedule
@pytest.mark.usefixtures("row_by_row")
def test_a_token_changes_no_bit_of_what_came_before_it(schedule: dict, changed: int) -> None:
    before, after = before_and_after(schedule, {}, changed, torch.float32)
    assert torch.equal(after[:, :changed], before[:, :changed])
    assert not torch.equal(after[:, changed], before[:, changed])


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())
@by_schedule
def test_no_router_of_a_hybrid_looks_ahead(schedule: dict, router: dict) -> None:
    for changed in (5, 64):
        before, after = before_and_after(schedule, router, changed, torch.float64)
        assert worst(after[:, :changed], before[:, :changed]) < EXACT
        assert worst(after[:, changed], before[:, changed]) > 1e-3


@by_schedule
def test_a_token_changes_all_that_comes_after_it(schedule: dict) -> None:
    before, after = before_and_after(schedule, {}, 3, torch.float64)
    assert ((after - before)[0, 3:].abs().amax(-1) > 1e-9).all()


@by_schedule
@pytest.mark.usefixtures("row_by_row")
def test_what_other_rows_hold_changes_no_bit_of_a_row(schedule: dict) -> None:
    model, ids_BS = hybrid_model(dtype=torch.float32, **schedule), draw_ids(2, 40)
    other_BS = torch.cat((ids_BS[:1], draw_ids(1, 40, seed=9)))
    with torch.no_grad():
        assert torch.equal(model(other_BS).hidden_BSD[0], model(ids_BS).hidden_BSD[0])
