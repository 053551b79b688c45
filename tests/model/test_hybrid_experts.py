"""Experts of a hybrid model and gradients of its blocks: section 8, P13 (rows), P19, S7 to S10.

Axes: B batch, S sequence, D dim, V vocabulary, E experts, K experts per token, L layers.
"""

from __future__ import annotations

import pytest
import torch
from hybrid_models import EXACT, SCHEDULES, draw_ids, hybrid_model, hybrid_settings, randomise, worst
from torch import Tensor

from chronomoe.model.blocks import Context, RwkvBlock, TransformerBlock
from chronomoe.model.feedforward import ACTIVATIONS
from chronomoe.model.lm import LanguageModel
from chronomoe.model.moe import MoELayer
from chronomoe.model.settings import RouterSettings

by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
ROUTERS = {
    "topk softmax": {},
    "softmax": {"gate": "softmax"},
    "sigmoid": {"gate": "sigmoid"},
    "switch": {"kind": "switch", "gate": "softmax", "top_k": 1},
    "expert choice": {"kind": "expert_choice", "gate": "softmax", "capacity_factor": 2.0},
}
by_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())


def moe_layers(model: LanguageModel) -> list[MoELayer]:
    return [module for module in model.modules() if isinstance(module, MoELayer)]


@by_router
def test_permuting_experts_with_their_gate_rows_changes_nothing(router: dict) -> None:
    model, ids_BS, order_E = hybrid_model(router=router), draw_ids(2, 40), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        before = model(ids_BS)
        for layer in moe_layers(model):
            for tensor in (layer.router.gate.weight, layer.experts.gate_up_EFD, layer.experts.down_EDF):
                tensor.copy_(tensor[order_E].clone())
        after = model(ids_BS)
    assert worst(after.hidden_BSD, before.hidden_BSD) < EXACT
    for one, other in zip(after.routings, before.routings, strict=True):
        assert torch.equal(one.tokens_per_expert_E, other.tokens_per_expert_E[order_E])


@by_schedule
def test_identical_experts_are_one_expert(schedule: dict) -> None:
    """Weights over the chosen sum to 1 under this gate, so whoever is chosen answers alike."""
    model, dense = hybrid_model(**schedule), hybrid_model(router={"top_k": 1}, dense=True, **schedule)
    with torch.no_grad():
        for layer in moe_layers(model):
            for tensor in layer.experts.parameters():
                tensor.copy_(tensor[:1].clone().expand_as(tensor))
        state = model.state_dict()
        for name in dense.state_dict():
            packed = name.replace("ffn.gate_up.weight", "ffn.experts.gate_up_EFD")
            packed = packed.replace("ffn.down.weight", "ffn.experts.down_EDF")
            if dense.state_dict()[name].numel():
                dense.state_dict()[name].copy_(state[name] if packed == name else state[packed][0])
        ids_BS = draw_ids(2, 40)
        assert worst(model(ids_BS).hidden_BSD, dense(ids_BS).hidden_BSD) < EXACT


def by_mask(layer: MoELayer, x_TD: Tensor) -> Tensor:
    """Every expert over every token, and only then the choice."""
    routing = layer.router(x_TD, x_TD.new_zeros(4), None)
    join = ACTIVATIONS[layer.experts.activation].join
    total_TD = torch.zeros_like(x_TD)
    for expert in range(4):
        chosen_TK = routing.topk_expert_ids_TK == expert
        weight_T1 = (routing.topk_weights_TK * chosen_TK).sum(dim=1, keepdim=True)
        hidden_TF = join(x_TD @ layer.experts.gate_up_EFD[expert].T)
        total_TD = total_TD + weight_T1 * (hidden_TF @ layer.experts.down_EDF[expert].T)
    return total_TD


@pytest.mark.parametrize("block", [0, 2], ids=["recurrent", "attending"])
@by_router
def test_experts_are_the_masked_sum_of_all_of_them_and_so_are_their_gradients(router: dict, block: int) -> None:
    layer = hybrid_model(router=router).train().blocks[block].ffn
    x_TD = torch.randn(37, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    given = [x_TD, *layer.parameters()]
    results = [layer(x_TD, x_TD.new_zeros(4), None)[0], by_mask(layer, x_TD)]
    assert worst(*results) < EXACT
    direction_TD = torch.cos(torch.arange(37.0 * 64, dtype=torch.float64)).view(37, 64)
    gradients = [torch.autograd.grad(result, given, direction_TD) for result in results]
    assert all(worst(one, other) < EXACT for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("training", [True, False])
@by_schedule
def test_every_block_computes_as_many_expert_rows_as_tokens_chose(schedule: dict, training: bool) -> None:
    model = hybrid_model(**schedule).train(training)
    for routing in model(draw_ids(2, 40)).routings:
        assert int(routing.tokens_per_expert_E.sum()) == 2 * 40 * 2
        assert routing.kept_TK is None


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@by_router
def test_gradients_reach_every_parameter(router: dict, autocast: bool) -> None:
    model = hybrid_model(router=router, dtype=torch.float32, schedule="RRTR", num_layers=4).train()
    ids_BS = draw_ids(4, 40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(ids_BS)
        output.loss(ids_BS.roll(-1, dims=1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_new_model_learns_its_output_matrices_first_and_all_of_itself_soon() -> None:
    """Zero matrices hide what is behind them for two steps (reference, section 2.2)."""
    torch.manual_seed(0)
    model = LanguageModel(hybrid_settings(), RouterSettings(kind="mixtral"))
    ids_BS = draw_ids(4, 32)
    optimizer, hidden = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(3):
        optimizer.zero_grad()
        model(ids_BS).loss(ids_BS.roll(-1, dims=1)).backward()
        hidden.append([name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()])
        optimizer.step()
    assert len(hidden[0]) > len(hidden[1]) >= len(hidden[2])
    assert hidden[2] == []


@pytest.mark.parametrize("length", [3, 18], ids=["recurrent", "chunk"])
@pytest.mark.parametrize("kind", ["first", "later", "attending"])
def test_a_blocks_gradients_are_those_of_differences(kind: str, length: int) -> None:
    torch.manual_seed(0)
    settings, router = hybrid_settings(hidden_dim=8), RouterSettings(kind="mixtral")
    if kind == "attending":
        block: RwkvBlock | TransformerBlock = TransformerBlock(settings, router, "selection", 2)
        for parameter in block.parameters():
            torch.nn.init.constant_(parameter, float(parameter.dim() == 1))
    else:
        block = RwkvBlock(settings, router, "selection", 0, is_first=kind == "first")
        block.reset_parameters()
        torch.nn.init.zeros_(block.ffn.router.gate.weight)
        for norm in (block.time_mix_norm, block.ffn_norm):
            norm.reset_parameters()
    randomise(block)
    block = block.double()
    x_BSD, v_first_BSD, direction_BSD = (
        torch.randn(1, length, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in range(3)
    )

    def run(x_BSD: Tensor) -> Tensor:
        context = Context(None, None, v_first_BSD=v_first_BSD if kind == "later" else None)
        out_BSD: Tensor = block(x_BSD, context, None, (x_BSD.new_zeros(4), None))[0]
        return (out_BSD * direction_BSD).sum()

    step, given = 1e-6, [x_BSD.requires_grad_(), *block.parameters()]
    gradients = torch.autograd.grad(run(x_BSD), given, allow_unused=True)
    for tensor, gradient in zip(given, gradients, strict=True):
        assert gradient is not None
        towards = torch.cos(torch.arange(tensor.numel(), dtype=torch.float64)).view(tensor.shape)
        with torch.no_grad():
            tensor += step * towards
            above = run(x_BSD)
            tensor -= 2 * step * towards
            below = run(x_BSD)
            tensor += step * towards
        expected = float((gradient * towards).sum())
        assert float(above - below) / (2 * step) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_hybrid_learns_four_sequences_by_heart() -> None:
    torch.manual_seed(0)
    model = LanguageModel(hybrid_settings(schedule="RRTR", num_layers=4), RouterSettings(kind="mixtral"))
    ids_BS = draw_ids(4, 65)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    loss = torch.tensor(float("inf"))
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(ids_BS[:, :-1]).loss(ids_BS[:, 1:])
        if loss < 0.1:
            break
        loss.backward()
        optimizer.step()
    assert loss < 0.1
