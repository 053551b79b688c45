"""The two seams a controller uses: what the sensor counts, and what the field does to the whole model.

Axes: L MoE layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput, TopKRouter
from chronomoe.model.sensor import UNIT

MakeModel = Callable[..., LanguageModel]
MakeIds = Callable[..., Tensor]
FIELD = ("expert_bias_LE", "log_temperature_LE")
NUM_LAYERS, BATCH, LENGTH = 2, 4, 12


def steer(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(5)
    model.expert_bias_LE.copy_(torch.randn(model.expert_bias_LE.shape, generator=generator))
    model.log_temperature_LE.copy_(0.3 * torch.randn(model.expert_bias_LE.shape, generator=generator))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_training_counts_every_assignment_once_and_every_weight_once(
    tiny_model: MakeModel, draw_ids: MakeIds, top_k: int
) -> None:
    model = tiny_model(top_k=top_k).train()
    output = model(draw_ids(BATCH, LENGTH))
    counts_LE, mass_LE, _ = model.sensor_LEC.unbind(dim=-1)
    assert counts_LE.sum(dim=-1).tolist() == [BATCH * LENGTH * top_k] * NUM_LAYERS
    torch.testing.assert_close(mass_LE.sum(dim=-1) / UNIT, torch.full((NUM_LAYERS,), float(BATCH * LENGTH)))
    for layer, routing in enumerate(output.routings):
        assert counts_LE[layer].tolist() == routing.topk_expert_ids_TK.flatten().bincount(minlength=4).tolist()


def test_evaluation_counts_nothing(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model().eval()
    model(draw_ids(BATCH, LENGTH))
    assert not model.sensor_LEC.any()


def test_padding_is_not_counted(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, real_BC = tiny_model().train(), draw_ids(BATCH, LENGTH, seed=2) > 8
    output = model(draw_ids(BATCH, LENGTH), real_BC=real_BC)
    assert model.sensor_LEC[..., 0].sum(dim=-1).tolist() == [2 * int(real_BC.sum())] * NUM_LAYERS
    for layer, routing in enumerate(output.routings):
        real_ids = routing.topk_expert_ids_TK[real_BC.flatten()]
        assert model.sensor_LEC[layer, :, 0].tolist() == real_ids.flatten().bincount(minlength=4).tolist()


def test_the_sensor_adds_up_over_forwards(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model().train()
    readings = []
    for seed in range(3):
        model.sensor_LEC.zero_()
        model(draw_ids(BATCH, LENGTH, seed=seed))
        readings.append(model.sensor_LEC.clone())
    model.sensor_LEC.zero_()
    for seed in range(3):
        model(draw_ids(BATCH, LENGTH, seed=seed))
    assert torch.equal(model.sensor_LEC, torch.stack(readings).sum(dim=0))


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_reading_is_bitwise_the_same_however_the_batch_is_split(
    tiny_model: MakeModel, draw_ids: MakeIds, micro_batch: int
) -> None:
    model, ids_BS = tiny_model().double().train(), draw_ids(8, LENGTH)
    steer(model)
    model(ids_BS)
    whole = model.sensor_LEC.clone()
    model.sensor_LEC.zero_()
    for part_BS in ids_BS.split(micro_batch):
        model(part_BS)
    assert torch.equal(model.sensor_LEC, whole)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@torch.no_grad()
def test_a_neutral_field_is_bitwise_the_model_that_never_had_one(
    monkeypatch: pytest.MonkeyPatch, tiny_model: MakeModel, draw_ids: MakeIds, actuation: str
) -> None:
    def without_field(self: TopKRouter, x_TD: Tensor, *field: Tensor) -> RouterOutput:
        logits_TE = x_TD @ self.gate.weight.T
        top = logits_TE.topk(self.top_k, dim=-1)
        counts_E = top.indices.flatten().bincount(minlength=4)
        return RouterOutput(top.indices, top.values.softmax(dim=-1), logits_TE, logits_TE, counts_E)

    model, ids_BS = tiny_model(actuation=actuation), draw_ids(BATCH, LENGTH)
    with_neutral_field = model(ids_BS).logits_BSV
    monkeypatch.setattr(TopKRouter, "forward", without_field)
    assert torch.equal(model(ids_BS).logits_BSV, with_neutral_field)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@torch.no_grad()
def test_a_field_changes_routing_and_clearing_it_restores_the_logits(
    tiny_model: MakeModel, draw_ids: MakeIds, actuation: str
) -> None:
    model, ids_BS = tiny_model(actuation=actuation), draw_ids(BATCH, LENGTH)
    plain = model(ids_BS)
    steer(model)
    steered = model(ids_BS)
    for before, after in zip(plain.routings, steered.routings, strict=True):
        assert not torch.equal(before.topk_expert_ids_TK, after.topk_expert_ids_TK)
    for name in FIELD:
        getattr(model, name).zero_()
    assert torch.equal(model(ids_BS).logits_BSV, plain.logits_BSV)


@pytest.mark.parametrize("train", [True, False])
def test_forward_and_backward_never_write_the_field(tiny_model: MakeModel, draw_ids: MakeIds, train: bool) -> None:
    model = tiny_model().train(train)
    steer(model)
    before = [getattr(model, name).clone() for name in FIELD]
    model(draw_ids(BATCH, LENGTH)).logits_BSV.sum().backward()
    for name, copy in zip(FIELD, before, strict=True):
        assert torch.equal(getattr(model, name), copy)


@pytest.mark.parametrize(
    "cast",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16().float(), lambda m: m.double()],
    ids=["to bf16", "half", "bf16 and back", "double"],
)
def test_a_cast_of_the_model_keeps_every_bit_of_the_field(
    tiny_model: MakeModel, cast: Callable[[LanguageModel], LanguageModel]
) -> None:
    model = tiny_model()
    steer(model)
    before = [getattr(model, name).clone() for name in FIELD]
    model = cast(model)
    for name, copy in zip(FIELD, before, strict=True):
        assert getattr(model, name).dtype == torch.float32
        assert torch.equal(getattr(model, name), copy)
    assert model.sensor_LEC.dtype == torch.int64


def test_the_field_survives_a_state_dict_and_the_sensor_is_not_in_it(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model().to(torch.bfloat16).train()
    steer(model)
    model(draw_ids(BATCH, LENGTH))
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert set(FIELD) <= saved.keys()
    assert "sensor_LEC" not in saved
    fresh = tiny_model(seed=1).to(torch.bfloat16)
    fresh.load_state_dict(saved)
    for name in FIELD:
        assert getattr(fresh, name).dtype == torch.float32
        assert torch.equal(getattr(fresh, name), getattr(model, name))


def test_the_optimizer_never_sees_the_field(tiny_model: MakeModel) -> None:
    parameters = dict(tiny_model().named_parameters())
    assert not parameters.keys() & {*FIELD, "sensor_LEC"}


def test_the_field_moves_with_the_model_and_keeps_its_shape(tiny_model: MakeModel) -> None:
    model = tiny_model().to("meta")
    for name in FIELD:
        assert getattr(model, name).device.type == "meta"
        assert getattr(model, name).shape == (NUM_LAYERS, 4)
