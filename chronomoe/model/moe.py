"""The MoE layer: router, dispatch to experts, combine; and the shared experts, which every token passes.

    y_t = sum over e in S_t of w_te expert_e(x_t)  +  shared(x_t)       (shared experts: DeepSeekMoE, arXiv 2401.06066)
The layer holds no controller state: the field comes in as arguments, what happened goes out as one state object.

Axes: T tokens, D model dim, E experts.
"""

from __future__ import annotations

from torch import Tensor, nn

from chronomoe.model.dispatch import dispatch
from chronomoe.model.expert_choice import ExpertChoiceRouter
from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import FeedForward
from chronomoe.model.router import RouterOutput, TopKRouter
from chronomoe.model.sensor import LayerState
from chronomoe.model.settings import ModelSettings, RouterSettings


class MoELayer(nn.Module):
    def __init__(
        self,
        router: TopKRouter | ExpertChoiceRouter,
        experts: ExpertBank,
        layer: int = 0,
        shared_experts: FeedForward | None = None,
    ) -> None:
        super().__init__()
        self.router, self.experts, self.layer, self.shared_experts = router, experts, layer, shared_experts

    def forward(
        self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor | None, real_T: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        """Returns the layer's output [T, D] and everything it knows of this forward."""
        routing: RouterOutput = self.router(x_TD, expert_bias_E, log_temperature_E, real_T)
        mixture_TD, outputs_of = dispatch(x_TD, routing, self.experts)
        state = LayerState(self.layer, routing, expert_bias_E, real_T, outputs_of, mixture_TD)
        if self.shared_experts is None:
            return mixture_TD, state
        return mixture_TD + self.shared_experts(x_TD), state


def build_router(model: ModelSettings, router: RouterSettings, actuation: str) -> TopKRouter | ExpertChoiceRouter:
    if router.kind == "expert_choice":
        assert router.capacity_factor is not None
        return ExpertChoiceRouter(model.dim, model.num_experts, router.capacity_factor, router.causal)
    return TopKRouter(
        model.dim,
        model.num_experts,
        router.top_k,
        actuation,
        router.gate,
        capacity_factor=router.capacity_factor,
        jitter=router.jitter,
    )


def build_moe(
    model: ModelSettings, router: RouterSettings, actuation: str, layer: int, activation: str | None = None
) -> MoELayer:
    """`activation` inside the experts; None: the model's."""
    activation = activation or model.activation
    experts = ExpertBank(model.num_experts, model.dim, model.hidden_dim, activation)
    shared_experts = None
    if model.num_shared_experts:
        shared_experts = FeedForward(model.dim, model.num_shared_experts * model.hidden_dim, activation)
    return MoELayer(build_router(model, router, actuation), experts, layer, shared_experts)
