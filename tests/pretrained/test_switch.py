"""The same weights in transformers' Switch layer compute the same outputs and gradients, dropped tokens included.

Axes: T tokens, D model dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from chronomoe.model.moe import MoELayer, build_moe
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.pretrained.switch import from_switch, switch_config, to_switch

if TYPE_CHECKING:
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")

TOKENS = 40
MakeSettings = Callable[..., ModelSettings]
FACTORS = [None, 0.5, 1.0, 1.25, 3.0]


def make_router(factor: float | None, jitter: float = 0.0) -> RouterSettings:
    return RouterSettings(kind="switch", gate="softmax", top_k=1, capacity_factor=factor, jitter=jitter)


def make_layers(settings: ModelSettings, router: RouterSettings) -> tuple[MoELayer, SwitchTransformersSparseMLP]:
    """Ours and transformers' with the same weights, both in training mode."""
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    torch.manual_seed(0)
    ours = build_moe(settings, router, "selection", 0)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    theirs = SwitchTransformersSparseMLP(switch_config(settings, router, TOKENS))
    theirs.load_state_dict(to_switch(ours.state_dict()))
    return ours.train(), theirs.train()


def make_tokens(settings: ModelSettings) -> Tensor:
    return torch.randn(TOKENS, settings.dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("num_experts", [4, 6])
def test_outputs_and_gradients_agree_with_transformers(
    tiny_settings: MakeSettings, num_experts: int, factor: float | None
) -> None:
    settings = tiny_settings(activation="relu", num_experts=num_experts)
    ours, theirs = make_layers(settings, make_router(factor))
    x_TD = make_tokens(settings)
    zeros_E = torch.zeros(num_experts)
    outputs, gradients = [], []
    for layer in (ours, theirs):
        row_TD = x_TD.clone().requires_grad_()
        y_TD = layer(row_TD, zeros_E, zeros_E)[0] if layer is ours else layer(row_TD[None])[0]
        (y_TD * torch.linspace(-1, 1, y_TD.numel()).view_as(y_TD)).sum().backward()
        outputs.append(y_TD.detach())
        gradients.append(row_TD.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    dropped_T = ~outputs[1].any(dim=-1)
    if factor is not None and factor <= 1.0:
        assert dropped_T.any()  # theirs does drop, and both pass nothing on
    our_gradients = to_switch({name: weight.grad for name, weight in ours.named_parameters()})
    their_gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        expected = torch.zeros_like(our_gradients[name]) if gradient is None else gradient  # an idle expert of theirs
        torch.testing.assert_close(our_gradients[name], expected, rtol=1e-4, atol=1e-5, msg=name)


def test_jitter_is_drawn_alike_but_leaves_the_experts_input_alone(tiny_settings: MakeSettings) -> None:
    settings = tiny_settings(activation="relu")
    ours, theirs = make_layers(settings, make_router(None, jitter=0.2))
    x_TD, zeros_E = make_tokens(settings), torch.zeros(4)
    before_TD = x_TD.clone()
    torch.manual_seed(3)
    _, state = ours(x_TD, zeros_E, zeros_E)
    assert torch.equal(x_TD, before_TD)
    torch.manual_seed(3)
    _, _, their_logits = theirs.router(x_TD.clone()[None])  # it multiplies its own input in place
    torch.testing.assert_close(state.routing.logits_TE, their_logits[0])


def test_conversion_there_and_back_is_the_identity(tiny_settings: MakeSettings) -> None:
    ours, _ = make_layers(tiny_settings(activation="relu"), make_router(1.0))
    state = ours.state_dict()
    back = from_switch(to_switch(state), 4)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], weight) for name, weight in state.items())
