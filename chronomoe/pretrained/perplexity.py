"""Perplexity of a text under a field that another part of the text set, beside the same model without one.

    windows of W tokens start every R tokens;  loss_w = mean over the last R of them of -ln p(next token | those before)
    perplexity = exp(mean_w loss_w) ;  difference_w = loss_w(controlled) - loss_w(neutral),  the same tokens
Every scored token has at least W - R tokens of context, and is scored once. The text is cut in two. The first half
calibrates: one forward and one tick of the controller for each W tokens, each token once a pass. Then the field is
frozen, and the second half is read twice, with it and without; nothing of what is measured has set the field.

The interval takes the windows as exchangeable, which neighbours of one text are only roughly: it speaks for this text.

Axes: S tokens of a half, W window, R stride, L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.chrono.callback import steer
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.metrics.load import load_entropy, max_vio
from chronomoe.model.router import count_assignments, wide
from chronomoe.pretrained.steered import SteeredModel

Shown = Callable[[Iterable[Any]], Iterable[Any]]
"""A progress bar around what is gone through, or nothing."""


class Reading(NamedTuple):
    """Of one half in evaluation mode."""

    losses: list[float]
    """Nats per token, a window each."""
    tokens_per_expert_LE: Tensor
    """int64, of scored tokens."""

    def as_json(self) -> dict[str, float]:
        loss = sum(self.losses) / len(self.losses)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "max_vio": float(max_vio(self.tokens_per_expert_LE).mean()),
            "load_entropy": float(load_entropy(self.tokens_per_expert_LE).mean()),
        }


def starts(num_tokens: int, window: int, stride: int) -> range:
    """Where windows begin, each with a target for every token; what is left at the end is not scored."""
    return range(0, num_tokens - window, stride)


@torch.no_grad()
def read(model: SteeredModel, ids_S: Tensor, window: int, stride: int, shown: Shown = lambda it: it) -> Reading:
    """Nothing of the model is changed."""
    model.eval()
    losses, total_LE = [], torch.zeros_like(model.expert_bias_LE, dtype=torch.int64)
    for start in shown(starts(len(ids_S), window, stride)):
        piece_S = ids_S[start : start + window + 1].to(model.device)
        output = model(piece_S[None, :-1])
        logits_RV = output.head(output.hidden_BSD[0, -stride:])
        targets_R = piece_S[-stride:].to(logits_RV.device)
        losses.append(float(cross_entropy(logits_RV.to(wide(logits_RV)), targets_R)))
        for layer, routing in enumerate(output.routings):
            counts_E = count_assignments(routing.topk_expert_ids_TK[-stride:], total_LE.shape[1])
            total_LE[layer] += counts_E.to(total_LE.device)
    return Reading(losses, total_LE)


@torch.no_grad()
def calibrate(
    model: SteeredModel,
    controller: Chronovisor,
    ids_S: Tensor,
    window: int,
    passes: int,
    shown: Shown = lambda it: it,
) -> int:
    """Let the controller set the field, a tick for every `window` tokens; returns the ticks."""
    controller.to(model.device)
    model.attach(
        controller.probes(model.router_settings.top_k, model.settings.dim),
        controller.balancer(),
        controller.solves_evaluation,
    )
    pieces = [piece_S for piece_S in ids_S.split(window + 1) if len(piece_S) == window + 1] * passes
    model.train()
    for piece_S in shown(pieces):
        piece_S = piece_S.to(model.device)
        output = model(piece_S[None, :-1])
        steer(model, controller, output.loss(piece_S[None, 1:]) if controller.needs_loss else None)
    model.eval()
    return len(pieces)
