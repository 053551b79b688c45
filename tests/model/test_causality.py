"""Does a token change what was computed before it? Every router is asked, in training, where drops and thresholds act.

Experts run one row at a time here, so that the size of a block cannot change the last bit of a row: equal is bitwise.

Axes: B batch, S sequence, V vocabulary, N assignments, C slots per expert, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings

LENGTH = 16
MakeSettings = Callable[..., ModelSettings]
MakeIds = Callable[..., Tensor]
SWITCH = {"kind": "switch", "gate": "softmax", "top_k": 1}
SIGMOID = {"kind": "mixtral", "gate": "sigmoid", "top_k": 2}
CAUSAL = {
    "mixtral": {"kind": "mixtral", "top_k": 2},
    "mixtral with capacity": {"kind": "mixtral", "top_k": 2, "capacity_factor": 0.75},
    "sigmoid": SIGMOID,
    "sigmoid with capacity": SIGMOID | {"capacity_factor": 0.5},
    "switch": SWITCH,
    "switch with capacity": SWITCH | {"capacity_factor": 0.75},
    "expert choice, causal": {"kind": "expert_choice", "gate": "softmax", "capacity_factor": 2.0},
}
PLAIN_EXPERT_CHOICE = CAUSAL["expert choice, causal"] | {"causal": False}


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_row(bank: ExpertBank, x_D: Tensor, expert: int) -> Tensor:
        hidden = ACTIVATIONS[bank.activation].join(bank.gate_up_EFD[expert] @ x_D)
        return bank.down_EDF[expert] @ hidden

    def sorted_rows(bank: ExpertBank, x_ND: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
        owners = torch.arange(4).repeat_interleave(tokens_per_expert_E).tolist()
        rows = [one_row(bank, x_D, e) for x_D, e in zip(x_ND, owners, strict=False)]
        nobodys = x_ND.new_full((len(x_ND) - len(owners), x_ND.shape[1]), float("nan"))  # no one may read these
        return torch.cat((torch.stack(rows), nobodys))

    def slots(bank: ExpertBank, x_ECD: Tensor) -> Tensor:
        return torch.stack([torch.stack([one_row(bank, x_D, e) for x_D in x_CD]) for e, x_CD in enumerate(x_ECD)])

    monkeypatch.setattr(ExpertBank, "forward", sorted_rows)
    monkeypatch.setattr(ExpertBank, "batched", slots)


def before_and_after(
    settings: ModelSettings, router: dict[str, object], ids_BS: Tensor, changed: int, row: int = 0
) -> tuple[Tensor, Tensor]:
    """Training-mode logits before and after one token of one sequence is another."""
    torch.manual_seed(0)
    model = LanguageModel(settings, RouterSettings(**router)).train()  # type: ignore[arg-type]
    other_BS = ids_BS.clone()
    other_BS[row, changed] = (other_BS[row, changed] + 1) % 32
    with torch.no_grad():
        return model(ids_BS).logits_BSV, model(other_BS).logits_BSV


@pytest.mark.parametrize("router", CAUSAL.values(), ids=CAUSAL.keys())
@pytest.mark.parametrize("changed", [1, 9, LENGTH - 1])
@pytest.mark.usefixtures("row_by_row")
def test_a_token_leaves_every_logit_before_it_alone(
    tiny_settings: MakeSettings, draw_ids: MakeIds, router: dict[str, object], changed: int
) -> None:
    before, after = before_and_after(tiny_settings(init_std=0.3), router, draw_ids(1, LENGTH), changed)
    assert torch.equal(after[:, :changed], before[:, :changed])
    assert not torch.equal(after[:, changed], before[:, changed])


@pytest.mark.parametrize("router", CAUSAL.values(), ids=CAUSAL.keys())
def test_the_fast_kernels_leak_no_more_than_rounding(
    tiny_settings: MakeSettings, draw_ids: MakeIds, router: dict[str, object]
) -> None:
    settings = tiny_settings(init_std=0.3)
    for changed in (1, 9, LENGTH - 1):
        before, after = before_and_after(settings, router, draw_ids(1, LENGTH), changed)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("row_by_row")
def test_plain_expert_choice_leaks_the_future(tiny_settings: MakeSettings, draw_ids: MakeIds) -> None:
    """The same check fails, and not by rounding: this is why the rule is flagged and has no decoding."""
    leaks = [
        before_and_after(tiny_settings(init_std=0.3), PLAIN_EXPERT_CHOICE, draw_ids(1, LENGTH), changed)
        for changed in range(1, LENGTH)
    ]
    largest = [float((after - before)[:, :changed].abs().max()) for changed, (before, after) in enumerate(leaks, 1)]
    assert sum(leak > 1e-2 for leak in largest) > LENGTH // 2


CAPPED = {name: router for name, router in CAUSAL.items() if "with capacity" in name}


@pytest.mark.parametrize("router", CAPPED.values(), ids=CAPPED.keys())
@pytest.mark.usefixtures("row_by_row")
def test_sequences_share_the_room_in_their_order(
    tiny_settings: MakeSettings, draw_ids: MakeIds, router: dict[str, object]
) -> None:
    settings, ids_BS = tiny_settings(init_std=0.3), draw_ids(2, LENGTH)
    for changed in range(LENGTH):
        before, after = before_and_after(settings, router, ids_BS, changed, row=1)
        assert torch.equal(after[0], before[0])
    pairs = [before_and_after(settings, router, ids_BS, changed, row=0) for changed in range(LENGTH)]
    assert any(not torch.equal(after[1], before[1]) for before, after in pairs)
