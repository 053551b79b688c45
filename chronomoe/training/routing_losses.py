"""What the routing adds to a micro-batch's loss, and over which tokens its load counts.

    loss = cross-entropy + load_balancing_weight * load balancing + z_loss_weight * z
For the scope "global batch" the load is that of the whole optimizer step: all ranks' counts are summed, and where a
step has several micro-batches they are first routed without training, so that all of them use the same, final counts.
That is exact and costs one more forward pass; with one micro-batch it costs an all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from chronomoe.model.lm import LanguageModel, Output
from chronomoe.model.losses import load_balancing_loss, router_z_loss
from chronomoe.model.settings import RouterSettings
from chronomoe.processes import sum_over_processes


def counts_of(output: Output) -> Tensor:
    """int64 [L, E]: assignments of one forward (packed batches hold no padding)."""
    return torch.stack([routing.tokens_per_expert_E for routing in output.routings])


class RoutingLosses:
    """Weighted losses of each micro-batch; off means not computed."""

    def __init__(self, model: LanguageModel, router: RouterSettings) -> None:
        self.model, self.router = model, router
        dense = model.settings.dense
        self.balances = not dense and router.load_balancing_weight > 0
        self.shrinks = not dense and router.z_loss_weight > 0
        self.looks_ahead = self.balances and router.load_balancing_scope == "global_batch"
        self._step_counts_LE: Tensor | None = None

    @torch.no_grad()
    def look_ahead(self, forwards: Iterable[Callable[[], Output]]) -> None:
        """Route a step's micro-batches for their counts alone, before the first of them is trained on.

        `forwards` run the micro-batches as training will. The sensor does not see this.
        """
        self.model.sensing = False
        try:
            counts = [counts_of(forward()) for forward in forwards]
        finally:
            self.model.sensing = True
        self._step_counts_LE = sum_over_processes(torch.stack(counts).sum(dim=0))

    def __call__(self, output: Output, *, alone: bool) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, loss) of what is switched on. `alone`: the step has no other micro-batch."""
        losses: dict[str, tuple[float, Any]] = {}
        if self.balances:
            counts_LE = None
            if self.looks_ahead:
                counts_LE = sum_over_processes(counts_of(output)) if alone else self._step_counts_LE
            balancing = load_balancing_loss(output.routings, self.router.gate, counts_LE=counts_LE)
            losses["load_balancing_loss"] = (self.router.load_balancing_weight, balancing)
        if self.shrinks:
            losses["router_z_loss"] = (self.router.z_loss_weight, router_z_loss(output.routings))
        return losses
