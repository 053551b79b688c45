"""One MoE layer of a loaded model under control: two forward hooks, on its router and on its experts.

    router:   sees the router's input and decision; reports the clean logits, and under a field decides anew (rules.py)
    experts:  sees what the chosen experts made of the tokens; the sensor reads it
A neutral field leaves the router's own decision untouched, bit for bit. Nothing is recorded outside of a forward of
`SteeredModel`, so recomputing activations in a backward pass steers as the forward did and counts nothing twice.

Axes: T tokens, D model dim, E experts, K experts per token, L MoE layers, S sampled tokens, B sequences of P positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from chronomoe.model.products import full_precision
from chronomoe.model.router import Balancer, RouterOutput, count_by_expert, wide
from chronomoe.model.sensor import LayerState, read_layer
from chronomoe.model.steerable import Steerable
from chronomoe.pretrained.rules import Choice, Rule, choose, corrected, score


class Decision(NamedTuple):
    """A router's own."""

    logits_TE: Tensor
    """In the model's precision, as the router ranked them."""
    ids_TK: Tensor
    weights_TK: Tensor


def is_steered(router: nn.Module) -> bool:
    return any(isinstance(getattr(hook, "__self__", None), SteeredLayer) for hook in router._forward_hooks.values())


@dataclass
class Record:
    """What one forward of a steered model did, layer by layer."""

    real_T: Tensor | None
    """bool, False at padding."""
    routings: list[RouterOutput] = field(default_factory=list)
    own: list[Decision] = field(default_factory=list)
    """What each router had decided itself."""
    readings: list[Tensor] = field(default_factory=list)
    """Of the sensor, int64 [E, C]; empty where nothing is counted."""


class SteeredLayer:
    """Of the families whose router returns (logits, weights, ids) for flat tokens."""

    balancer: Balancer | None = None
    balance_evaluation: bool = False

    def __init__(self, number: int, router: Any, experts: Any, rule: Rule, steer_weights: bool) -> None:
        self.number, self.router, self.experts, self.rule = number, router, experts, rule
        self.steer_weights = steer_weights
        self.record: Record | None = None
        """Of the forward that is running, if it is recorded."""

    def hook(self, model: Steerable) -> list[Any]:
        """Handles of the two hooks, which read the field of `model` and its mode."""
        self.model = model
        return [
            self.router.register_forward_hook(self.on_router),
            self.experts.register_forward_hook(self.on_experts),
        ]

    def on_router(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.route(self.model, args[0], output)

    def on_experts(self, experts: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.record is not None and self.model.training and self.model.sensing:
            self.record.readings.append(self.read(self.model, args[0], output))

    def route(self, model: Steerable, x: Tensor, output: Any) -> Any:
        """What the router shall have said; None lets its own word stand."""
        own = self.own_decision(x, output)
        clean_TE = self.clean_logits(x, own)
        bias_E = model.expert_bias_LE[self.number].to(clean_TE.device)
        heat_E = model.log_temperature_LE[self.number].to(clean_TE.device)
        solver = self.balancer if model.training or self.balance_evaluation else None
        acts = torch.logical_or(bias_E.any(), heat_E.any()) if solver is None else None
        correction_E = getattr(self.router, "e_score_correction_bias", None)
        real_T = None if self.record is None else self.record.real_T
        steered = acts is None or not acts.is_cpu or bool(acts)
        with full_precision(clean_TE.device.type):
            ranked_TE = own.logits_TE.to(wide(own.logits_TE))
            if steered:
                choice = choose(
                    self.rule,
                    ranked_TE,
                    bias_E,
                    heat_E,
                    correction_E=correction_E,
                    steer_weights=self.steer_weights,
                    balancer=solver,
                    real_T=real_T,
                )
                ids_TK, weights_TK = choice.topk_expert_ids_TK, choice.topk_weights_TK.to(own.weights_TK.dtype)
                if acts is not None and not acts.is_cpu:  # no host waits to learn whether the field is neutral
                    ids_TK, weights_TK = ids_TK.where(acts, own.ids_TK), weights_TK.where(acts, own.weights_TK)
            else:
                scores_TE = corrected(score(ranked_TE.detach(), self.rule.gate), correction_E)
                choice = Choice(own.ids_TK, own.weights_TK, scores_TE)
                ids_TK, weights_TK = own.ids_TK, own.weights_TK
        said, kept_TK = self.say(x, output, ids_TK, weights_TK)
        if self.record is not None:
            self.record.own.append(own)
            self.record.routings.append(
                RouterOutput(
                    ids_TK,
                    (weights_TK if kept_TK is None else weights_TK * kept_TK).to(wide(weights_TK)),
                    clean_TE,
                    choice.scores_TE,
                    count_by_expert(ids_TK.flatten(), None, clean_TE.shape[-1]),
                    kept_TK=kept_TK,
                    price_E=choice.price_E,
                )
            )
        return said if steered else None

    def read(self, model: Steerable, x: Tensor, output: Tensor) -> Tensor:
        """The sensor's reading of this layer, int64 [E, C]."""
        assert self.record is not None
        routing, x_TD = self.record.routings[self.number], x.detach().flatten(0, -2)

        @torch.no_grad()
        def outputs_of(token_S: Tensor) -> Tensor:
            ids_SK = routing.topk_expert_ids_TK[token_S]
            x_ND = x_TD[token_S].repeat_interleave(ids_SK.shape[1], dim=0)
            y_SKD = self.each_expert(x_ND, ids_SK.flatten()).view(*ids_SK.shape, -1)
            return y_SKD if routing.kept_TK is None else y_SKD * routing.kept_TK[token_S, :, None]

        bias_E = model.expert_bias_LE[self.number].to(x.device)
        mixture_TD = output.detach().flatten(0, -2)
        state = LayerState(self.number, routing, bias_E, self.record.real_T, outputs_of, mixture_TD)
        return read_layer(state, model.probes)

    def chosen_without_a_field(self, logits_TE: Tensor) -> Tensor:
        """The experts of tokens with these logits by the family's rule alone, int64 [T, K]."""
        neutral_E = torch.zeros_like(logits_TE[0])
        correction_E = getattr(self.router, "e_score_correction_bias", None)
        return choose(self.rule, logits_TE, neutral_E, None, correction_E=correction_E).topk_expert_ids_TK

    def own_decision(self, x: Tensor, output: Any) -> Decision:
        _, weights_TK, ids_TK = output
        x_TD, weight_ED = x.reshape(-1, x.shape[-1]), self.weight(x.device)
        if self.rule.in_fp32:
            x_TD, weight_ED = x_TD.float(), weight_ED.float()
        return Decision(linear(x_TD, weight_ED), ids_TK, weights_TK)

    def clean_logits(self, x: Tensor, own: Decision) -> Tensor:
        """W x in fp32; the router's own logits where it computed them so."""
        if own.logits_TE.dtype == wide(own.logits_TE):
            return own.logits_TE
        with full_precision(x.device.type):
            return linear(x.reshape(-1, x.shape[-1]).float(), self.weight(x.device).float())

    def weight(self, device: torch.device) -> Tensor:
        """Of the gate, [E, D]. Where accelerate offloads it, it is back in its place by the time a hook runs."""
        weight: Tensor = self.router.weight
        return self.router._hf_hook.weights_map["weight"].to(device) if weight.is_meta else weight

    def say(self, x: Tensor, output: Any, ids_TK: Tensor, weights_TK: Tensor) -> tuple[Any, Tensor | None]:
        """A decision in the router's own terms, and which of it was kept."""
        return (output[0], weights_TK, ids_TK), None

    def each_expert(self, x_ND: Tensor, ids_N: Tensor) -> Tensor:
        """The output of one expert for each row, unweighted; past the hooks."""
        ones_N1 = torch.ones_like(ids_N, dtype=x_ND.dtype)[:, None]
        return self.experts.forward(x_ND, ids_N[:, None], ones_N1)


class SwitchLayer(SteeredLayer):
    """Of Switch: the router returns (dispatch [B, P, E], probability [B, P, 1], logits [B, P, E]), and an expert has
    `expert_capacity` slots in each sequence, in evaluation too."""

    def own_decision(self, x: Tensor, output: Any) -> Decision:
        _, probability, logits = output
        probabilities = logits.softmax(dim=-1, dtype=self.router.dtype).to(probability.dtype)
        return Decision(
            logits.flatten(0, 1), probabilities.argmax(dim=-1).flatten()[:, None], probability.flatten(0, 1)
        )

    def say(self, x: Tensor, output: Any, ids_TK: Tensor, weights_TK: Tensor) -> tuple[Any, Tensor | None]:
        batch_and_place = x.shape[:2]
        wanted = one_hot(ids_TK[:, 0].view(batch_and_place), self.router.num_experts)
        dispatch = wanted * (wanted.cumsum(dim=-2) <= self.router.expert_capacity)
        kept_TK = dispatch.sum(dim=-1).flatten()[:, None] > 0
        return (dispatch, weights_TK.view(*batch_and_place, 1), output[2]), kept_TK

    def each_expert(self, x_ND: Tensor, ids_N: Tensor) -> Tensor:
        chosen = one_hot(ids_N, self.router.num_experts)[:, None]
        return self.experts.forward(x_ND, chosen, x_ND.new_ones(len(x_ND), 1))
