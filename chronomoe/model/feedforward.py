"""A feed-forward layer every token passes: all of a dense model, or the shared experts of an MoE layer.

    swiglu: y = W_down (silu(W_gate x) * W_up x)  (arXiv 2002.05202) ;  relu: y = W_down relu(W_up x)
relu has no gate: where a name says gate and up, it has up alone.

Axes: F hidden dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class Activation(NamedTuple):
    parts: int
    """Hidden projections it joins into one: gate and up, or up alone."""
    join: Callable[[Tensor], Tensor]
    """Their concatenation [..., parts * F] -> [..., F]."""


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


ACTIVATIONS = {"swiglu": Activation(2, swiglu), "relu": Activation(1, torch.relu)}


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, activation: str) -> None:
        super().__init__()
        parts, self.join = ACTIVATIONS[activation]
        self.gate_up = nn.Linear(dim, parts * hidden_dim, bias=False)
        """Gate above up; up alone under relu."""
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.join(self.gate_up(x)))
