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

from chronomoe.model.products import Linear


class Activation(NamedTuple):
    parts: int
    """Hidden projections it joins into one: gate and up, or up alone."""
    join: Callable[[Tensor], Tensor]
    """Their concatenation [..., parts * F] -> [..., F]."""
    differentiate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(concatenation, gradient of what they join into, which is overwritten) -> (what they join into, gradient of the
    concatenation)."""


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def differentiate_swiglu(gate_up: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor]:
    """d_gate = d_hidden up silu'(gate), d_up = d_hidden silu(gate), each written into its half."""
    gate, up = gate_up.chunk(2, dim=-1)
    d_gate_up = torch.empty_like(gate_up)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    hidden = silu(gate)
    torch.mul(d_hidden, hidden, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_gate)
    return hidden.mul_(up), d_gate_up


def differentiate_relu(up: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(up), d_hidden.mul_(up > 0)


ACTIVATIONS = {
    "swiglu": Activation(2, swiglu, differentiate_swiglu),
    "relu": Activation(1, torch.relu, differentiate_relu),
}


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, activation: str) -> None:
        super().__init__()
        self.join = ACTIVATIONS[activation].join
        self.gate_up = Linear(dim, ACTIVATIONS[activation].parts * hidden_dim)
        """Gate above up; up alone under relu."""
        self.down = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.join(self.gate_up(x)))
