"""What the benchmark needs to know of a system: its weights, its losses, its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from chronomoe.config import TrainConfig
from chronomoe.training.optimizer import decay_groups


class Losses(NamedTuple):
    cross_entropy: Tensor
    total: Tensor
    """Cross-entropy and the weighted load-balancing loss: what is differentiated."""


class Learner(NamedTuple):
    module: nn.Module
    """Its parameters are trained and clipped together."""
    losses: Callable[[Tensor, Tensor], Losses]
    """(input ids [B, S], targets [B, S]) -> losses, run under autocast where the system is bf16."""
    logits: Callable[[Tensor], Tensor]
    """Input ids [B, S] -> logits [B, S, V], without any loss."""
    optimizer: Optimizer
    clip: Callable[[float], Tensor]
    """Bounds the global norm of the gradients that the optimizer's next step sees."""
    control: Callable[[bool], None] | None = None
    """What controller and metrics do in a step, before the optimizer; the argument says whether metrics are fetched."""
    note: str = ""
    """What a reader of the row must know."""


def clipping(module: nn.Module) -> Callable[[float], Tensor]:
    """torch's own, which every peer gets."""
    return partial(nn.utils.clip_grad_norm_, list(module.parameters()))


def fused_adamw(module: nn.Module, config: TrainConfig) -> AdamW:
    """torch's own AdamW with our decay groups, which every peer gets."""
    optim = config.optim
    groups = decay_groups(module.parameters(), optim.weight_decay)
    return AdamW(groups, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), fused=True)


def mean_cross_entropy(logits_BSV: Tensor, targets_BS: Tensor) -> Tensor:
    return cross_entropy(logits_BSV.flatten(0, 1).float(), targets_BS.flatten())
