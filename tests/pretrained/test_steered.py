"""Loaded models under a field, family by family, against transformers' own outputs.

Axes: L MoE layers, T tokens, D dim, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hub_models import DECODERS, FAMILIES, tiny_hub_model
from torch import Tensor

from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput
from chronomoe.model.sensor import UNIT
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral
from chronomoe.pretrained.steered import SteeredModel
from chronomoe.settings import InputError

pytest.importorskip("transformers")
BATCH, LENGTH = 3, 11


def ids(seed: int = 1, batch: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randint(1, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


def plain_logits(base: Any, ids_BS: Tensor) -> Tensor:
    if base.config.is_encoder_decoder:
        logits: Tensor = base(input_ids=ids_BS, decoder_input_ids=ids_BS, use_cache=False).logits
        return logits
    return base(ids_BS).logits  # type: ignore[no-any-return]


def run(model: SteeredModel, ids_BS: Tensor) -> Any:
    return model(ids_BS, source_ids_BS=None if model.family.streams else ids_BS)


def wander(model: SteeredModel, size: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(5)
    model.expert_bias_LE.copy_(size * torch.randn(model.expert_bias_LE.shape, generator=generator))
    model.log_temperature_LE.copy_(0.5 * size * torch.randn(model.expert_bias_LE.shape, generator=generator))


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_neutral_field_is_bitwise_the_plain_model(name: str, actuation: str) -> None:
    base = tiny_hub_model(name)
    before = plain_logits(base, ids())
    model = SteeredModel(base, actuation=actuation)
    assert torch.equal(run(model, ids()).logits_BSV, before)
    assert torch.equal(plain_logits(base, ids()), before)  # called past the wrapper
    wander(model)
    assert not torch.equal(run(model, ids()).logits_BSV, before)
    model.expert_bias_LE.zero_()
    model.log_temperature_LE.zero_()
    assert torch.equal(run(model, ids()).logits_BSV, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_neutral_field_is_the_plain_model_in_other_precisions(name: str, dtype: torch.dtype) -> None:
    base = tiny_hub_model(name).to(dtype)
    base.set_experts_implementation("eager")  # the grouped one knows no fp64
    before = plain_logits(base, ids())
    model = SteeredModel(base)
    output = run(model, ids())
    assert torch.equal(output.logits_BSV, before)
    assert model.agreement >= 0.999
    assert {routing.logits_TE.dtype for routing in output.routings} <= {
        torch.promote_types(dtype, torch.float32),
        torch.float32,
    }


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@torch.no_grad()
def test_every_implementation_of_experts_is_steered(implementation: str) -> None:
    base = tiny_hub_model("mixtral")
    base.set_experts_implementation(implementation)
    before = plain_logits(base, ids())
    model = SteeredModel(base)
    assert torch.equal(run(model, ids()).logits_BSV, before)
    model.expert_bias_LE[:, 2] = 1e3
    assert all((routing.topk_expert_ids_TK == 2).any(-1).all() for routing in run(model, ids()).routings)
    assert not torch.equal(run(model, ids()).logits_BSV, before)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_clean_logits_are_the_gate_times_what_it_saw(name: str) -> None:
    model, seen = SteeredModel(tiny_hub_model(name)), []
    wander(model)
    for layer in model.routers():
        layer.router.register_forward_pre_hook(lambda router, args: seen.append((router, args[0].clone())))
    routings = run(model, ids()).routings
    assert len(routings) == model.settings.num_moe_layers
    for (router, h), routing in zip(seen, routings, strict=True):
        weight = router.weight if hasattr(router, "weight") else router.classifier.weight
        by_hand_TE = h.flatten(0, -2).float() @ weight.float().T
        torch.testing.assert_close(routing.logits_TE, by_hand_TE)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_reproduces_every_slot_that_a_router_selects(name: str) -> None:
    model = SteeredModel(tiny_hub_model(name))
    assert model.agreement == 1.0
    assert model.fp32_agreement == 1.0


def test_layers_without_a_router_are_not_counted_among_the_layers() -> None:
    assert SteeredModel(tiny_hub_model("qwen2")).settings.num_moe_layers == 2
    assert SteeredModel(tiny_hub_model("deepseek_v3")).settings.num_moe_layers == 2
    assert SteeredModel(tiny_hub_model("mixtral")).settings.num_moe_layers == 3


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_large_bias_sends_every_token_to_its_expert(name: str) -> None:
    model = SteeredModel(tiny_hub_model(name))
    for expert in range(model.settings.num_experts):
        model.expert_bias_LE.zero_()
        model.expert_bias_LE[:, expert] = 1e3
        for routing in run(model, ids()).routings:
            assert (routing.topk_expert_ids_TK == expert).any(dim=-1).all()


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_selection_leaves_the_weight_of_a_chosen_expert_and_logits_move_it(name: str) -> None:
    """In the first layer, whose input no field reaches: equal choices have equal weights under `selection` alone."""
    base = tiny_hub_model(name)
    outputs = {}
    for actuation in ("neutral", "selection", "logits"):
        model = SteeredModel(base, actuation="selection" if actuation == "neutral" else actuation)
        if actuation != "neutral":
            wander(model, 0.15)
        outputs[actuation] = run(model, ids(batch=8, length=40)).routings[0]
        model.detach()
    plain: RouterOutput = outputs["neutral"]
    for actuation, moved in (("selection", False), ("logits", True)):
        steered: RouterOutput = outputs[actuation]
        assert torch.equal(steered.logits_TE, plain.logits_TE)
        ours, theirs = (dense(routing) for routing in (steered, plain))
        same_T = ((ours > 0) == (theirs > 0)).all(dim=-1)
        assert 0 < same_T.sum() < len(same_T)  # some tokens were moved and some were not
        assert torch.allclose(ours[same_T], theirs[same_T], atol=1e-7) != moved


def dense(routing: RouterOutput) -> Tensor:
    return torch.zeros_like(routing.logits_TE).scatter_(1, routing.topk_expert_ids_TK, routing.topk_weights_TK)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@torch.no_grad()
def test_the_same_field_does_the_same_to_the_same_weights_in_our_own_mixtral(actuation: str) -> None:
    from transformers import MixtralForCausalLM

    torch.manual_seed(0)
    settings = ModelSettings(
        num_layers=2,
        num_experts=4,
        dim=16,
        hidden_dim=24,
        num_heads=4,
        num_kv_heads=2,
        vocab_size=32,
        max_seq_len=32,
        init_std=0.3,
    )
    router = RouterSettings(kind="mixtral", top_k=2)
    native = LanguageModel(settings, router, actuation).eval()
    base = MixtralForCausalLM(mixtral_config(settings, router)).eval()
    base.load_state_dict(to_mixtral(native.state_dict(), settings))
    steered = SteeredModel(base, actuation=actuation)
    wander(steered)
    native.expert_bias_LE.copy_(steered.expert_bias_LE)
    native.log_temperature_LE.copy_(steered.log_temperature_LE)
    ours, theirs = native(ids()), steered(ids())
    torch.testing.assert_close(theirs.logits_BSV, ours.logits_BSV, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.hidden_BSD, ours.hidden_BSD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.loss(ids(2)), ours.loss(ids(2)))
    for mine, own in zip(theirs.routings, ours.routings, strict=True):
        assert torch.equal(mine.topk_expert_ids_TK, own.topk_expert_ids_TK)
        torch.testing.assert_close(mine.topk_weights_TK, own.topk_weights_TK)
        torch.testing.assert_close(mine.scores_TE, own.scores_TE)
    assert (steered.settings.dim, steered.settings.vocab_size) == (16, 32)
    assert steered.router_settings.gate == router.gate


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_training_counts_every_assignment_and_evaluation_none(name: str) -> None:
    model = SteeredModel(tiny_hub_model(name))
    wander(model)
    run(model, ids())
    assert not model.sensor_LEC.any()
    output = run(model.train(), ids())
    counts_LE, mass_LE, _ = model.sensor_LEC.unbind(dim=-1)
    for layer, routing in enumerate(output.routings):
        brute = [0] * model.settings.num_experts
        mass = [0.0] * model.settings.num_experts
        for ids_K, weights_K in zip(routing.topk_expert_ids_TK.tolist(), routing.topk_weights_TK.tolist(), strict=True):
            for expert, weight in zip(ids_K, weights_K, strict=True):
                brute[expert] += 1
                mass[expert] += weight
        assert counts_LE[layer].tolist() == brute
        assert (mass_LE[layer] / UNIT).tolist() == pytest.approx(mass, abs=1e-4)


@torch.no_grad()
def test_padding_is_neither_seen_nor_counted() -> None:
    model = SteeredModel(tiny_hub_model("mixtral")).train()
    real_BC = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    real_BC[0, :4] = False
    first, second = ids(1), ids(1)
    second[0, :4] = 7
    outputs = [model(first, real_BC=real_BC), model(second, real_BC=real_BC)]
    assert model.sensor_LEC[..., 0].sum(dim=-1).tolist() == [2 * 2 * int(real_BC.sum())] * 3
    torch.testing.assert_close(outputs[0].logits_BSV[0, 4:], outputs[1].logits_BSV[0, 4:])


def test_recomputed_activations_count_once_and_give_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        base = tiny_hub_model("mixtral")
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        model = SteeredModel(base, freeze="base").train()
        wander(model)
        model(ids()).loss(ids(2)).backward()
        found.append((model.sensor_LEC.clone(), [layer.router.weight.grad for layer in model.routers()]))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_detaching_leaves_nothing_behind(name: str) -> None:
    base = tiny_hub_model(name)
    base.requires_grad_(True)
    with torch.no_grad():
        before = plain_logits(base, ids())
    state = {key: value.clone() for key, value in base.state_dict().items()}
    attributes = {key: set(vars(module)) for key, module in base.named_modules()}
    model = SteeredModel(base, freeze="all").train()
    wander(model)
    run(model, ids())
    assert model.detach() is base
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in base.state_dict().items())
    for key, module in base.named_modules():
        assert set(vars(module)) == attributes[key]
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module.training
    assert all(parameter.requires_grad for parameter in base.parameters())
    with torch.no_grad():
        assert torch.equal(plain_logits(base, ids()), before)
    with pytest.raises(InputError, match="detached"):
        run(model, ids())


def test_the_field_is_saved_in_fp32_and_the_base_has_none_of_it() -> None:
    model = SteeredModel(tiny_hub_model("mixtral").to(torch.bfloat16))
    wander(model)
    before = model.expert_bias_LE.clone()
    model.half()
    assert model.expert_bias_LE.dtype == torch.float32
    assert torch.equal(model.expert_bias_LE, before)
    assert {"expert_bias_LE", "log_temperature_LE"} <= model.state_dict().keys()
    assert not [key for key in model.base.state_dict() if "bias_LE" in key]


def test_a_router_that_breaks_its_familys_rule_is_refused_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_hub_model("olmoe")
    router = type(base.model.layers[0].mlp.gate)
    own = router.forward

    def worst_first(self: Any, hidden: Tensor) -> Any:
        logits, weights, _ = own(self, hidden)
        return logits, weights, (-logits).topk(2, dim=-1).indices

    monkeypatch.setattr(router, "forward", worst_first)
    with pytest.raises(InputError, match="rule of OLMoE"):
        SteeredModel(base)
    assert not any(module._forward_hooks for module in base.modules())


def test_what_cannot_be_steered_is_refused_in_one_line() -> None:
    import transformers

    dense = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4
        )
    )
    with pytest.raises(InputError, match="LlamaForCausalLM cannot be steered; take a model with routers of Mixtral"):
        SteeredModel(dense)
    with pytest.raises(InputError, match="freeze=some"):
        SteeredModel(tiny_hub_model("mixtral"), freeze="some")
    qwen = tiny_hub_model("qwen3", mlp_only_layers=[0, 1, 2])
    with pytest.raises(InputError, match="no Qwen3MoeTopKRouter in it"):
        SteeredModel(qwen)
    hidden = tiny_hub_model("mixtral")
    gate = hidden.model.layers[1].mlp.gate
    gate.weight = torch.nn.Parameter(gate.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(InputError, match=r"model.layers.1.mlp.gate: this router's weights are quantised"):
        SteeredModel(hidden)
    steered = SteeredModel(tiny_hub_model("mixtral"))
    with pytest.raises(InputError, match="steered already: detach it first"):
        SteeredModel(steered.base)
    SteeredModel(steered.detach())
    switch = SteeredModel(tiny_hub_model("switch"))
    with pytest.raises(InputError, match="source_ids_BS"):
        switch(ids())
    with pytest.raises(InputError, match="generation by states is not supported"):
        switch.new_state(1)
    with pytest.raises(InputError, match="document_mask"):
        SteeredModel(tiny_hub_model("mixtral"))(ids(), document_BS=ids())


@torch.no_grad()
def test_a_model_whose_weights_are_offloaded_is_steered_as_one_in_memory() -> None:
    accelerate = pytest.importorskip("accelerate")
    outputs = []
    for offloaded in (False, True):
        base = tiny_hub_model("deepseek_v3").to(torch.bfloat16)
        if offloaded:
            accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
            assert base.model.layers[1].mlp.gate.weight.is_meta
        model = SteeredModel(base)
        wander(model)
        model.train()
        outputs.append((model(ids()), model.sensor_LEC.clone()))
    (ours, counts), (theirs, again) = outputs
    assert torch.equal(ours.logits_BSV, theirs.logits_BSV)
    assert torch.equal(counts, again)
    for one, other in zip(ours.routings, theirs.routings, strict=True):
        assert torch.equal(one.logits_TE, other.logits_TE)


@torch.no_grad()
def test_switch_drops_what_has_no_room_in_its_sequence_and_says_so() -> None:
    model = SteeredModel(tiny_hub_model("switch", expert_capacity=3)).train()
    model.expert_bias_LE[:, 1] = 1e3
    output = run(model, ids())
    for routing in output.routings:
        assert routing.kept_TK is not None
        kept_BS = routing.kept_TK.view(BATCH, LENGTH)
        assert kept_BS.tolist() == [[place < 3 for place in range(LENGTH)]] * BATCH
        assert not routing.topk_weights_TK[~routing.kept_TK].any()
    assert model.sensor_LEC[:, 1, 2].tolist() == [BATCH * (LENGTH - 3)] * 4
