"""Learning-rate schedules as pure functions of the step, and AdamW's decay groups."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from itertools import compress

from torch import nn

from chronomoe.model.rwkv import LoRA, TimeMix
from chronomoe.training.adamw import AdamW
from chronomoe.training.settings import OptimSettings

DECAY_LR = 2.0
"""Learning rate of time mixing's decay bias, relative to all others'."""


def lr_factor(step: int, max_steps: int, optim: OptimSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak: linear warm-up, then the schedule.

    WSD (warm-up, stable, decay: arXiv 2404.06395) stays at the peak and falls linearly over the last `decay_frac`.
    """
    warmup_steps = round(optim.warmup_frac * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    falling_from = warmup_steps if optim.schedule == "cosine" else max_steps - round(optim.decay_frac * max_steps)
    if optim.schedule == "constant" or step < falling_from:
        return 1.0
    progress = min(1.0, (step - falling_from) / max(1, max_steps - 1 - falling_from))
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if optim.schedule == "cosine" else 1.0 - progress
    return optim.min_lr_frac + (1.0 - optim.min_lr_frac) * remaining


def decay_groups(
    parameters: Iterable[nn.Parameter], weight_decay: float, spared: Collection[int] = ()
) -> list[dict[str, object]]:
    """Matrices decay, vectors (norms) do not, nor do those whose `id` is spared. Controller fields are buffers and
    never get here."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    decaying = [parameter.dim() > 1 and id(parameter) not in spared for parameter in trainable]
    return [
        {"params": list(compress(trainable, decaying)), "weight_decay": weight_decay},
        {"params": [p for p, decays in zip(trainable, decaying, strict=True) if not decays], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, optim: OptimSettings, *, fused: bool) -> AdamW:
    """RWKV-7's recipe where there is time mixing: nothing of it decays but its four projections, and the decay's bias
    learns twice as fast."""
    betas = (optim.betas[0], optim.betas[1])
    mixers = [module for module in model.modules() if isinstance(module, TimeMix)]
    faster = [mixer.decay_D for mixer in mixers]
    spared = {
        id(p) for part in model.modules() if isinstance(part, TimeMix | LoRA) for p in part.parameters(recurse=False)
    }
    others = [p for p in model.parameters() if all(p is not fast for fast in faster)]
    groups = decay_groups(others, optim.weight_decay, spared)
    if faster:
        groups.append({"params": faster, "weight_decay": 0.0, "lr": DECAY_LR * optim.lr})
    return AdamW(groups, lr=optim.lr, betas=betas, fused=fused)
