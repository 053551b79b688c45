"""The callback's hooks, called as Lightning calls them: sensor in, field out, once per optimizer step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from chronomoe.chrono import callback as callback_module
from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.chrono.record import RoutingRecord
from chronomoe.model.lm import LanguageModel

MakeSteered = Callable[..., tuple[LanguageModel, ChronovisorCallback]]
DrawIds = Callable[..., Tensor]


@pytest.fixture
def steered(
    tiny_model: Callable[..., LanguageModel],
    law_settings: Callable[..., ChronoSettings],
    recorded_run: Callable[..., Path],
    tmp_path: Path,
) -> MakeSteered:
    def make(law: str = "chronovisor", **overrides: object) -> tuple[LanguageModel, ChronovisorCallback]:
        model = tiny_model().train()
        if law in ("replay", "sham"):
            overrides["trace"] = str(recorded_run(2, 4))
        controller = Chronovisor(law_settings(law, **overrides), 2, 4)
        callback = ChronovisorCallback(controller, model, max_steps=10, record_path=tmp_path / "routing.npz")
        callback.on_train_start(None, None)
        return model, callback

    return make


def tick(callback: ChronovisorCallback, ids_BS: Tensor) -> None:
    callback.model(ids_BS)
    callback.on_before_optimizer_step(None, None, None)


def keys_in_the_table() -> set[str]:
    """The keys in the first column of the table in the callback's docstring."""
    rows = re.findall(r"^\| ((?:router|chrono)/[^|]*) \|", callback_module.__doc__, flags=re.MULTILINE)
    return {key for row in rows for key in row.split(", ")}


def without_layer_numbers(values: dict[str, Tensor]) -> set[str]:
    return {re.sub(r"layer_\d\d", "layer_NN", key) for key in values}


def test_a_tick_clears_the_sensor_and_writes_the_controllers_field(steered: MakeSteered, draw_ids: DrawIds) -> None:
    model, callback = steered(temperature="structural")
    twin = Chronovisor(callback.controller.settings, 2, 4)
    for step in range(5):
        model(draw_ids(4, 12, seed=step))
        field = twin.tick(callback_module.gather_and_clear(model.sensor_LEC.clone()))
        callback.on_before_optimizer_step(None, None, None)
        assert torch.equal(model.expert_bias_LE, field.bias_LE)
        assert torch.equal(model.log_temperature_LE, field.log_temperature_LE)
        assert not model.sensor_LEC.any()
    assert model.expert_bias_LE.any()
    assert model.log_temperature_LE.any()


def test_evaluation_neither_ticks_nor_counts_nor_steers(steered: MakeSteered, draw_ids: DrawIds) -> None:
    model, callback = steered()
    for seed in range(4):
        tick(callback, draw_ids(4, 12, seed=seed))
    before = model.expert_bias_LE.clone(), callback.controller.step_count, dict(callback.controller.state)
    model.eval()
    model(draw_ids(4, 12, seed=9))
    assert not model.sensor_LEC.any()
    assert torch.equal(model.expert_bias_LE, before[0])
    assert callback.controller.step_count == before[1]
    assert all(torch.equal(callback.controller.state[name], tensor) for name, tensor in before[2].items())


@pytest.mark.parametrize("law", LAWS)
def test_every_metric_is_in_the_table_and_a_scalar(law: str, steered: MakeSteered, draw_ids: DrawIds) -> None:
    _, callback = steered(law)
    assert callback.metrics() == {}
    for seed in range(4):
        tick(callback, draw_ids(4, 12, seed=seed))
    values = callback.metrics()
    assert without_layer_numbers(values) <= keys_in_the_table()
    assert all(value.ndim == 0 and torch.isfinite(value) for value in values.values())


def test_metrics_of_the_full_law_fill_the_table(steered: MakeSteered, draw_ids: DrawIds) -> None:
    _, callback = steered(knob="schedule", phi=True)
    for seed in range(4):
        tick(callback, draw_ids(4, 12, seed=seed))
    of_other_routers = {"router/dropped_frac", "router/unserved_frac"}
    assert without_layer_numbers(callback.metrics()) | of_other_routers == keys_in_the_table()


def test_max_vio_history_and_idle_steps_follow_the_counts(steered: MakeSteered, draw_ids: DrawIds) -> None:
    model, callback = steered("off")
    model.sensor_LEC[..., 0] = torch.tensor([[8, 0, 0, 0], [4, 2, 2, 0]])
    callback.on_before_optimizer_step(None, None, None)
    model.sensor_LEC[..., 0] = torch.tensor([[2, 2, 2, 2], [4, 4, 0, 0]])
    callback.on_before_optimizer_step(None, None, None)
    assert callback.max_vio_history[:2].tolist() == [2.0, 0.5]
    assert callback.max_vio_history[2:].isnan().all()
    assert callback.idle_steps_LE.tolist() == [[0, 0, 0, 0], [0, 0, 1, 2]]
    assert callback.longest_idle_steps().item() == 2


def test_a_checkpoint_writes_the_record_beside_it_on_one_rank_only(steered: MakeSteered, draw_ids: DrawIds) -> None:
    _, callback = steered()
    tick(callback, draw_ids(4, 12))
    callback.on_save_checkpoint(SimpleNamespace(is_global_zero=False), None, {})
    assert not callback.record_path.exists()
    callback.on_save_checkpoint(SimpleNamespace(is_global_zero=True), None, {})
    assert RoutingRecord.load(callback.record_path, last_step=1).steps == [1]


def test_a_resumed_callback_goes_on_bit_for_bit(steered: MakeSteered, draw_ids: DrawIds) -> None:
    model, callback = steered(temperature="documented")
    for step in range(3):
        tick(callback, draw_ids(4, 12, seed=step))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    callback.record.save(callback.record_path)
    saved = callback.state_dict()
    saved["max_vio_history"] = saved["max_vio_history"].clone()
    resumed_model, resumed = steered(temperature="documented")
    resumed_model.load_state_dict(weights)
    resumed.load_state_dict(saved)
    resumed.on_train_start(None, None)
    for step in range(3, 7):
        tick(callback, draw_ids(4, 12, seed=step))
        tick(resumed, draw_ids(4, 12, seed=step))
        assert torch.equal(resumed_model.expert_bias_LE, model.expert_bias_LE)
        assert torch.equal(resumed_model.log_temperature_LE, model.log_temperature_LE)
    assert torch.equal(resumed.max_vio_history[:7], callback.max_vio_history[:7])
    assert torch.equal(resumed.idle_steps_LE, callback.idle_steps_LE)
    assert resumed.record.steps == callback.record.steps == list(range(1, 8))
