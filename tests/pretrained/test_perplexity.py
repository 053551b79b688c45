"""Windows, calibration and readings of a text, against transformers' loss on the same tokens."""

from __future__ import annotations

import pytest
import torch
from hub_models import tiny_hub_model
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.chrono.controller import Chronovisor
from chronomoe.config import compose_config
from chronomoe.pretrained.perplexity import calibrate, read, starts
from chronomoe.pretrained.steered import SteeredModel

pytest.importorskip("transformers")


def ids(length: int, seed: int = 1) -> Tensor:
    return torch.randint(32, (length,), generator=torch.Generator().manual_seed(seed))


@given(num_tokens=st.integers(0, 200), window=st.integers(2, 40), part=st.floats(0.0, 1.0))
def test_every_token_behind_the_first_context_is_scored_once(num_tokens: int, window: int, part: float) -> None:
    stride = max(1, round(part * window))
    scored = [
        target
        for start in starts(num_tokens, window, stride)
        for target in range(start + window - stride + 1, start + window + 1)
    ]
    assert scored == list(range(window - stride + 1, window - stride + 1 + len(scored)))
    assert all(target < num_tokens for target in scored)
    assert num_tokens <= window or num_tokens - 1 - scored[-1] < stride  # what is left would fill no window


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (20, 1)])
def test_losses_are_those_of_transformers_on_the_same_tokens(window: int, stride: int) -> None:
    base, text_S = tiny_hub_model("mixtral"), ids(90)
    expected = []
    with torch.no_grad():
        for start in range(0, 90 - window, stride):
            logits = base(text_S[None, start : start + window]).logits[0]
            targets = text_S[start + 1 : start + window + 1]
            expected.append(float(cross_entropy(logits[-stride:], targets[-stride:])))
    found = read(SteeredModel(base), text_S, window, stride)
    assert found.losses == pytest.approx(expected, rel=1e-5)
    assert found.tokens_per_expert_LE.sum(dim=-1).tolist() == [2 * stride * len(expected)] * 3
    assert found.as_json()["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_measuring_changes_nothing_and_calibrating_only_the_field() -> None:
    model = SteeredModel(tiny_hub_model("mixtral"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def changed() -> set[str]:
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    read(model, ids(90), 16, 8)
    assert not changed()
    assert not model.sensor_LEC.any()
    controller = Chronovisor(compose_config(["chrono=sign"]).chrono, *model.expert_bias_LE.shape)
    assert calibrate(model, controller, ids(90), 16, passes=2) == 2 * (90 // 17)
    assert changed() == {"expert_bias_LE"}
    assert controller.step_count == 10
    assert not model.training
    assert not model.sensor_LEC.any()
    field = model.expert_bias_LE.clone()
    read(model, ids(90), 16, 8)
    assert torch.equal(model.expert_bias_LE, field)


def test_a_field_of_one_half_balances_the_other() -> None:
    text_S, model = ids(4000), SteeredModel(tiny_hub_model("olmoe"))
    first_S, second_S = text_S.tensor_split(2)
    neutral = read(model, second_S, 32, 32).as_json()
    controller = Chronovisor(compose_config(["chrono=sign", "chrono.rate=0.003"]).chrono, *model.expert_bias_LE.shape)
    calibrate(model, controller, first_S, 32, passes=3)
    controlled = read(model, second_S, 32, 32).as_json()
    assert controlled["max_vio"] < 0.7 * neutral["max_vio"]
    assert controlled["load_entropy"] > neutral["load_entropy"]
