"""A bank of experts and the kernels that run it over tokens grouped by expert.

    swiglu: expert_e(x) = W_down,e (silu(W_gate,e x) * W_up,e x)          (arXiv 2002.05202; Mixtral)
    relu:   expert_e(x) = W_down,e relu(W_up,e x)                         (Switch, arXiv 2101.03961)
Rows arrive sorted by expert, so each expert's tokens are one block and the bank is grouped matrix products; or as a
fixed number of slots per expert, and the bank is batched products.

Axes: N assignments (rows sorted by expert), C slots per expert, D model dim, F hidden dim (gate above up under swiglu),
E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, silu

from chronomoe.model.feedforward import ACTIVATIONS, swiglu

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_ND, gate_up_EFD, down_EDF, tokens_per_expert_E) -> y_ND."""
Join = Callable[[Tensor], Tensor]


def run_grouped(
    x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor, join: Join = swiglu
) -> Tensor:
    """All experts in two grouped products; group borders stay on the device, so nothing waits for the host."""
    ends_E = tokens_per_expert_E.cumsum(0).to(torch.int32)
    hidden_NF = join(grouped_mm(x_ND.contiguous(), gate_up_EFD.transpose(1, 2), offs=ends_E))
    return grouped_mm(hidden_NF, down_EDF.transpose(1, 2), offs=ends_E)


def run_batched(x_ECD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, join: Join = swiglu) -> Tensor:
    """Every expert over as many slots, [E, C, D] to [E, C, D]; an empty slot (0) gives 0."""
    return torch.bmm(join(torch.bmm(x_ECD, gate_up_EFD.transpose(1, 2))), down_EDF.transpose(1, 2))


class BlockedSwiGLU(torch.autograd.Function):
    """One expert's block after another, forward and backward, each product written straight into its place.

    On a processor this beats the grouped product: a block's intermediates stay in the cache, no gradient is zeroed
    before it is written, and the two halves of the hidden gradient need not be joined
    (d_gate = d_hidden * up * silu'(gate), d_up = d_hidden * silu(gate)). Group sizes are host integers, which on a
    processor cost nothing.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
        ctx.sizes = tokens_per_expert_E.tolist()
        gate_up_NF = x_ND.new_empty(len(x_ND), gate_up_EFD.shape[1])
        hidden_NF = x_ND.new_empty(len(x_ND), down_EDF.shape[2])
        y_ND = torch.empty_like(x_ND)
        blocks = zip(*(rows.split(ctx.sizes) for rows in (x_ND, gate_up_NF, hidden_NF, y_ND)), strict=True)
        for expert, (x_nD, gate_up_nF, hidden_nF, y_nD) in enumerate(blocks):
            torch.mm(x_nD, gate_up_EFD[expert].T, out=gate_up_nF)
            gate_nF, up_nF = gate_up_nF.chunk(2, dim=-1)
            torch.mul(silu(gate_nF), up_nF, out=hidden_nF)
            torch.mm(hidden_nF, down_EDF[expert].T, out=y_nD)
        ctx.save_for_backward(x_ND, gate_up_EFD, down_EDF, gate_up_NF, hidden_NF)
        return y_ND

    @staticmethod
    def backward(ctx: Any, d_y_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        x_ND, gate_up_EFD, down_EDF, gate_up_NF, hidden_NF = ctx.saved_tensors
        d_x_ND, d_gate_up_EFD, d_down_EDF = (torch.empty_like(t) for t in (x_ND, gate_up_EFD, down_EDF))
        blocks = zip(*(rows.split(ctx.sizes) for rows in (x_ND, gate_up_NF, hidden_NF, d_y_ND, d_x_ND)), strict=True)
        for expert, (x_nD, gate_up_nF, hidden_nF, d_y_nD, d_x_nD) in enumerate(blocks):
            torch.mm(d_y_nD.T, hidden_nF, out=d_down_EDF[expert])
            d_hidden_nF = d_y_nD @ down_EDF[expert]
            gate_nF, up_nF = gate_up_nF.chunk(2, dim=-1)
            d_gate_up_nF = torch.empty_like(gate_up_nF)
            d_gate_nF, d_up_nF = d_gate_up_nF.chunk(2, dim=-1)
            torch.mul(d_hidden_nF, silu(gate_nF), out=d_up_nF)
            d_gate_nF.copy_(torch.ops.aten.silu_backward(d_hidden_nF.mul_(up_nF), gate_nF))
            torch.mm(d_gate_up_nF.T, x_nD, out=d_gate_up_EFD[expert])
            torch.mm(d_gate_up_nF, gate_up_EFD[expert], out=d_x_nD)
        return d_x_ND, d_gate_up_EFD, d_down_EDF, None


def blocked_swiglu(x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    y_ND: Tensor = BlockedSwiGLU.apply(x_ND.contiguous(), gate_up_EFD, down_EDF, tokens_per_expert_E)
    return y_ND


def run_looped(
    x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor, join: Join = swiglu
) -> Tensor:
    """One expert after another: the reference, and the way for shapes and dtypes that grouped_mm refuses."""
    blocks = x_ND.split(tokens_per_expert_E.tolist())
    return torch.cat([join(x_nD @ gate_up_EFD[e].T) @ down_EDF[e].T for e, x_nD in enumerate(blocks)])


def grouped_mm_accepts(dtype: torch.dtype, *widths: int) -> bool:
    """grouped_mm multiplies fp32, fp16 and bf16 whose rows are whole multiples of 16 bytes."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16) and all(w * dtype.itemsize % 16 == 0 for w in widths)


def choose_kernel(device_type: str, dtype: torch.dtype, activation: str, *widths: int) -> Kernel:
    """On a processor blocks, or the loop under relu; grouped products elsewhere, or the loop where those refuse dtype
    or widths."""
    if device_type == "cpu" and activation == "swiglu":
        return blocked_swiglu
    run = run_grouped if device_type != "cpu" and grouped_mm_accepts(dtype, *widths) else run_looped
    return partial(run, join=ACTIVATIONS[activation].join)


class ExpertBank(nn.Module):
    """All experts of one layer as two packed tensors: gate and up projections fused (up alone under relu), and the
    down projection."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int, activation: str = "swiglu") -> None:
        super().__init__()
        self.activation = activation
        parts = ACTIVATIONS[activation].parts
        self.gate_up_EFD = nn.Parameter(torch.empty(num_experts, parts * hidden_dim, dim))
        self.down_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.gate_up_EFD.to(dtype), self.down_EDF.to(dtype)

    def forward(self, x_ND: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
        """Rows [N, D] sorted by expert, in the dtype the products shall run in; returns rows in the same order."""
        kernel = choose_kernel(x_ND.device.type, x_ND.dtype, self.activation, *self.down_EDF.shape[1:])
        return kernel(x_ND, *self.weights(x_ND.dtype), tokens_per_expert_E)

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Slots [E, C, D] in the dtype the products shall run in; returns as many."""
        return run_batched(x_ECD, *self.weights(x_ECD.dtype), ACTIVATIONS[self.activation].join)
