"""Laws, the sensor's probes and training on loaded models.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hub_models import DECODERS, tiny_hub_model
from torch import Tensor

from chronomoe.chrono.callback import steer
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.metrics.load import max_vio
from chronomoe.config import compose_config
from chronomoe.pretrained.steered import SteeredModel
from chronomoe.study.routing_readings import run_model

pytest.importorskip("transformers")


def batch(seed: int, size: int = 8, length: int = 24) -> Tensor:
    """Sequences in which a token says which comes next."""
    start = torch.randint(32, (size, 1), generator=torch.Generator().manual_seed(seed))
    return (start + 3 * torch.arange(length)) % 32


def controlled(model: SteeredModel, *overrides: str) -> Chronovisor:
    settings = compose_config(list(overrides)).chrono
    controller = Chronovisor(settings, *model.expert_bias_LE.shape)
    model.attach(
        controller.probes(model.router_settings.top_k, model.settings.dim),
        controller.balancer(),
        controller.solves_evaluation,
    )
    return controller


def learn(model: SteeredModel, steps: int, controller: Chronovisor | None = None) -> list[float]:
    """Plain Adam on the routers; MaxVio of every step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for step in range(steps):
        ids_BS = batch(step)
        optimizer.zero_grad()
        model(ids_BS[:, :-1]).loss(ids_BS[:, 1:]).backward()
        found.append(float(max_vio(model.sensor_LEC[..., 0]).mean()))
        if controller is None:
            model.sensor_LEC.zero_()
        else:
            steer(model, controller)
        optimizer.step()
    return found


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen2", "deepseek_v2", "deepseek_v3"])
def test_a_law_balances_a_model_whose_routers_learn(name: str) -> None:
    loads = {}
    for law in ("off", "chronovisor"):
        model = SteeredModel(tiny_hub_model(name), freeze="base").train()
        controller = controlled(model, f"chrono={law}")
        loads[law] = learn(model, 60, controller)
    uncontrolled, steered = (sum(loads[law][-20:]) / 20 for law in ("off", "chronovisor"))
    assert loads["off"][0] == loads["chronovisor"][0]
    assert steered < 0.8 * uncontrolled


def test_a_law_balances_a_model_of_which_nothing_learns() -> None:
    model = SteeredModel(tiny_hub_model("mixtral"), freeze="all").train()
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    controller, loads = controlled(model, "chrono=sign", "chrono.rate=0.05"), []
    with torch.no_grad():
        for step in range(60):
            model(batch(step))
            loads.append(float(max_vio(model.sensor_LEC[..., 0]).mean()))
            steer(model, controller)
    assert sum(loads[-10:]) < 0.6 * sum(loads[:10])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.base.state_dict().items())


@pytest.mark.parametrize("law", [law for law in LAWS if law not in ("replay", "sham")])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "switch"])
def test_every_law_runs_on_a_loaded_model(name: str, law: str) -> None:
    model = SteeredModel(tiny_hub_model(name)).train()
    controller = controlled(model, f"chrono={law}")
    with torch.no_grad():
        for step in range(6):
            model(batch(step), source_ids_BS=None if model.family.streams else batch(step + 100))
            observation, field = steer(model, controller)
            expected = batch(step).numel() * model.router_settings.top_k
            assert observation.tokens_per_expert_LE.sum(dim=-1).tolist() == [expected] * model.settings.num_moe_layers
            assert field.bias_LE.isfinite().all()
    assert torch.equal(model.expert_bias_LE, field.bias_LE)
    assert not model.sensor_LEC.any()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2"])
@torch.no_grad()
def test_an_experts_output_alone_weighs_up_to_the_mixture(name: str) -> None:
    """What probes of expert outputs are shown is what the layer computed."""
    from chronomoe.model.sensor import LayerState, Probe

    model, seen = SteeredModel(tiny_hub_model(name)), []

    def look(state: LayerState) -> Tensor:
        token_S = torch.tensor([0, 5, 17])
        y_SKD = state.outputs_of(token_S)
        mixed_SD = (y_SKD * state.routing.topk_weights_TK[token_S, :, None]).sum(dim=1)
        torch.testing.assert_close(mixed_SD, state.mixture_TD[token_S], rtol=1e-4, atol=1e-5)
        seen.append(state.layer)
        return torch.zeros(model.settings.num_experts, 1, dtype=torch.int64)

    model.attach([Probe("look", 1, look)])
    model.train()(batch(0))
    assert seen == list(range(model.settings.num_moe_layers))


def test_phi_is_read_of_a_loaded_model() -> None:
    model = SteeredModel(tiny_hub_model("qwen2")).train()
    controller = controlled(model, "chrono=chronovisor", "chrono.phi=true")
    with torch.no_grad():
        model(batch(0))
    assert model.sensor_LEC.any()
    observation, _ = steer(model, controller)
    assert any("phi" in name for name in observation.readings)


@pytest.mark.parametrize("name", DECODERS)
def test_freeze_says_what_learns(name: str) -> None:
    model = SteeredModel(tiny_hub_model(name), freeze="base").train()
    routers = [layer.router.weight for layer in model.routers()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in routers}
    assert model.freeze("base") == sum(weight.numel() for weight in routers)
    before = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    learn(model, 2)
    changed = {name for name, tensor in model.base.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == model.settings.num_moe_layers
    assert all("gate.weight" in name for name in changed)
    assert model.freeze("all") == 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_base_stays_in_eval_mode_while_it_is_counted() -> None:
    model = SteeredModel(tiny_hub_model("mixtral", attention_dropout=0.5), freeze="all").train()
    assert model.training
    assert not any(module.training for module in model.base.modules())
    assert torch.equal(model(batch(0)).hidden_BSD, model.eval()(batch(0)).hidden_BSD)
    model.freeze("base")
    assert all(module.training for module in model.train().base.modules())


def test_evaluation_metrics_read_a_loaded_model() -> None:
    model = SteeredModel(tiny_hub_model("olmoe"))
    batches: list[Any] = [{"input_ids": batch(s)[:, :-1], "targets": batch(s)[:, 1:]} for s in range(2)]
    forward = run_model(model, batches, end_of_document=0, gate=model.router_settings.gate)  # type: ignore[arg-type]
    with torch.no_grad():
        losses = [float(model.base(batch(s), labels=batch(s)).loss) for s in range(2)]
    assert forward.loss == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert forward.topk_expert_ids_LTK is not None
    assert forward.topk_expert_ids_LTK.shape == (3, 2 * 8 * 23, 2)
