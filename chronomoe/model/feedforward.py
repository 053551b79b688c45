"""A feed-forward layer every token passes: all of a dense model, or the shared experts of an MoE layer.

    swiglu:        y = W_down (silu(W_gate x) * W_up x)      (arXiv 2002.05202)
    relu:          y = W_down relu(W_up x)
    squared_relu:  y = W_down relu(W_up x)^2                 (RWKV's channel mixing, arXiv 2503.14456)
    gelu:          y = W_down gelu(W_up x), by the error function
Only swiglu has a gate: where a name says gate and up, the others have up alone.

Axes: F hidden dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from chronomoe.model.products import Linear


class Activation(NamedTuple):
    parts: int
    """Hidden projections it joins into one: gate and up, or up alone."""
    join: Callable[[Tensor], Tensor]
    """Their concatenation [..., parts * F] -> [..., F]."""
    join_into: Callable[[Tensor, Tensor], None]
    """(concatenation, out): the same, written to `out`."""
    differentiate_into: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    """(concatenation, gradient of what they join into, which is overwritten, out, out): writes what they join into, and
    the gradient of the concatenation."""


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def swiglu_into(gate_up: Tensor, hidden: Tensor) -> None:
    gate, up = gate_up.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=hidden).mul_(up)


def differentiate_swiglu_into(gate_up: Tensor, d_hidden: Tensor, hidden: Tensor, d_gate_up: Tensor) -> None:
    """d_gate = d_hidden up silu'(gate), d_up = d_hidden silu(gate), each written into its half."""
    (gate, up), (d_gate, d_up) = gate_up.chunk(2, dim=-1), d_gate_up.chunk(2, dim=-1)
    torch.ops.aten.silu.out(gate, out=hidden)
    torch.mul(d_hidden, hidden, out=d_up)
    torch.ops.aten.silu_backward.grad_input(d_hidden.mul_(up), gate, grad_input=d_gate)
    hidden.mul_(up)


def relu_into(up: Tensor, hidden: Tensor) -> None:
    torch.clamp_min(up, 0.0, out=hidden)


def differentiate_relu_into(up: Tensor, d_hidden: Tensor, hidden: Tensor, d_up: Tensor) -> None:
    relu_into(up, hidden)
    torch.mul(d_hidden, up > 0, out=d_up)


def squared_relu(up: Tensor) -> Tensor:
    return up.relu().square()


def squared_relu_into(up: Tensor, hidden: Tensor) -> None:
    relu_into(up, hidden)
    hidden.square_()


def differentiate_squared_relu_into(up: Tensor, d_hidden: Tensor, hidden: Tensor, d_up: Tensor) -> None:
    """d_up = 2 relu(up) d_hidden."""
    relu_into(up, hidden)
    torch.mul(hidden, d_hidden, out=d_up).mul_(2.0)
    hidden.square_()


def gelu_into(up: Tensor, hidden: Tensor) -> None:
    torch.ops.aten.gelu.out(up, out=hidden)


def differentiate_gelu_into(up: Tensor, d_hidden: Tensor, hidden: Tensor, d_up: Tensor) -> None:
    gelu_into(up, hidden)
    torch.ops.aten.gelu_backward.grad_input(d_hidden, up, grad_input=d_up)


ACTIVATIONS = {
    "swiglu": Activation(2, swiglu, swiglu_into, differentiate_swiglu_into),
    "relu": Activation(1, torch.relu, relu_into, differentiate_relu_into),
    "squared_relu": Activation(1, squared_relu, squared_relu_into, differentiate_squared_relu_into),
    "gelu": Activation(1, gelu, gelu_into, differentiate_gelu_into),
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
