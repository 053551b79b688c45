"""How large a model is before any of it is allocated: parameters stored, parameters active per token, memory to
train."""

from __future__ import annotations

from typing import NamedTuple

import torch

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings

TRAINING_BYTES_PER_PARAMETER = 16
"""fp32 weight, gradient and AdamW's two moments, four bytes each. Activations come on top."""


class Size(NamedTuple):
    stored: int
    """All parameters."""
    active: int
    """Parameters that act on one token: all but the experts it is not routed to."""

    @property
    def training_bytes(self) -> int:
        return self.stored * TRAINING_BYTES_PER_PARAMETER

    def __str__(self) -> str:
        return f"{self.stored / 1e6:,.1f} M parameters, {self.active / 1e6:,.1f} M active per token"


def measure(model: LanguageModel, experts_per_token: float) -> Size:
    """Counts of a built model, on any device, meta included."""
    stored = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return Size(stored, stored - round(routed * (1 - experts_per_token / model.settings.num_experts)))


def size_of(model: ModelSettings, router: RouterSettings) -> Size:
    """Counts of a model that need not fit anywhere: it is built on the meta device, which holds shapes only."""
    with torch.device("meta"):
        return measure(LanguageModel(model, router), router.experts_per_token)
