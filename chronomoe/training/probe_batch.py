"""The probe batch: which experts the same tokens choose at every evaluation, and who moved them since the last one.

| key (mean over layers) | the selections compared; see chrono/metrics/change.py |
|---|---|
| val/churn | clean, now and at the previous evaluation: the weights moved |
| val/churn_field | under today's field and the previous evaluation's, both at today's logits: the controller moved |
| val/churn_chance | what val/churn would read for independent selections of these loads |
Clean is the top-k of the clean logits, by which every gate ranks. A layer's logits still follow from what the layers
below it did under the field in force. An assignment solved within the batch (`chrono.evaluation=batch`) is no function
of a field and is left out of churn_field.

Axes: R ranks, B batch, S sequence, T tokens of one rank, L MoE layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from chronomoe.chrono.metrics.change import churn, churn_null
from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput, TopKRouter
from chronomoe.processes import num_processes


class ProbeBatch:
    """Keeps the previous evaluation's clean selection and field, of every rank, so that any rank can save them."""

    def __init__(self, model: LanguageModel) -> None:
        """Nothing is watched where tokens do not choose: a dense model, expert choice."""
        self.routers = [module for module in model.modules() if isinstance(module, TopKRouter)]
        self._previous: dict[str, Tensor] = {}

    @torch.no_grad()
    def see(
        self,
        input_ids_BS: Tensor,
        routings: Sequence[RouterOutput],
        expert_bias_LE: Tensor,
        log_temperature_LE: Tensor,
    ) -> dict[str, Tensor]:
        """The keys above as fp64 scalars on the device, of this rank's tokens alone; remembers what it was shown.

        Ranks hold as many tokens each, so the mean of their values is that of all tokens. Empty when there is nothing
        to compare with: at the first evaluation, or when the tokens are not those of the previous one. All ranks agree
        on that. Every rank must call it: they exchange their selections.
        """
        if not self.routers:
            return {}
        logits = [routing.logits_TE for routing in routings]
        clean_LTK = torch.stack([clean_selection(x_TE, self.routers[0].top_k) for x_TE in logits])
        now = {
            "token_ids_RT": gather_ranks(input_ids_BS.flatten().int()),
            "topk_expert_ids_RLTK": gather_ranks(clean_LTK.int()).short(),
            "expert_bias_LE": expert_bias_LE.clone(),
            "log_temperature_LE": log_temperature_LE.clone(),
        }
        previous = {name: tensor.to(clean_LTK.device) for name, tensor in self._previous.items()}
        self._previous = now
        if not previous or not torch.equal(previous["token_ids_RT"], now["token_ids_RT"]):
            return {}
        num_experts = logits[0].shape[-1]
        before_LTK = previous["topk_expert_ids_RLTK"][rank()].long()
        under_now_LTK, under_previous_LTK = (
            self._steer(logits, field["expert_bias_LE"], field["log_temperature_LE"]) for field in (now, previous)
        )
        return {
            "val/churn": churn(before_LTK, clean_LTK, num_experts).mean(),
            "val/churn_field": churn(under_previous_LTK, under_now_LTK, num_experts).mean(),
            "val/churn_chance": churn_null(before_LTK, clean_LTK, num_experts).mean(),
        }

    def _steer(self, logits: Sequence[Tensor], expert_bias_LE: Tensor, log_temperature_LE: Tensor) -> Tensor:
        """What the routers select under a field, [L, T, K]."""
        layers = zip(self.routers, logits, expert_bias_LE, log_temperature_LE, strict=True)
        return torch.stack([router.select(x_TE, bias_E, heat_E) for router, x_TE, bias_E, heat_E in layers])

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors; empty before the first evaluation."""
        return dict(self._previous)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._previous = dict(state)


def clean_selection(logits_TE: Tensor, top_k: int) -> Tensor:
    """The experts a token would have without a field, int64 [T, K]."""
    return logits_TE.topk(top_k, dim=-1).indices


def gather_ranks(mine: Tensor) -> Tensor:
    """Every rank's tensor of this shape, along a new first axis."""
    if num_processes() == 1:
        return mine[None]
    parts = [torch.empty_like(mine) for _ in range(num_processes())]
    dist.all_gather(parts, mine.contiguous())
    return torch.stack(parts)


def rank() -> int:
    return dist.get_rank() if num_processes() > 1 else 0
