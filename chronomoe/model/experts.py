"""A bank of SwiGLU experts and the kernels that run it over tokens grouped by expert.

    expert_e(x) = W_down,e (silu(W_gate,e x) * W_up,e x)          (SwiGLU: arXiv 2002.05202)
Rows arrive sorted by expert, so each expert's tokens are one block and the bank is three grouped matrix products.

Axes: N assignments (rows sorted by expert), D model dim, F hidden dim, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, silu


def grouped_swiglu(x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """All experts in two grouped products; group borders stay on the device, so nothing waits for the host."""
    ends_E = tokens_per_expert_E.cumsum(0).to(torch.int32)
    gate_NF, up_NF = grouped_mm(x_ND.contiguous(), gate_up_EFD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    return grouped_mm(silu(gate_NF) * up_NF, down_EDF.transpose(1, 2), offs=ends_E)


def looped_swiglu(x_ND: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
    """One expert after another: the reference, and the way for shapes and dtypes that grouped_mm refuses."""
    outputs = []
    for expert, block_nD in enumerate(x_ND.split(tokens_per_expert_E.tolist())):
        gate_nF, up_nF = (block_nD @ gate_up_EFD[expert].T).chunk(2, dim=-1)
        outputs.append((silu(gate_nF) * up_nF) @ down_EDF[expert].T)
    return torch.cat(outputs)


def grouped_mm_accepts(dtype: torch.dtype, *widths: int) -> bool:
    """grouped_mm multiplies fp32, fp16 and bf16 whose rows are whole multiples of 16 bytes."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16) and all(w * dtype.itemsize % 16 == 0 for w in widths)


class ExpertBank(nn.Module):
    """All experts of one layer as two packed tensors: gate and up projections fused, and the down projection."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up_EFD = nn.Parameter(torch.empty(num_experts, 2 * hidden_dim, dim))
        self.down_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def forward(self, x_ND: Tensor, tokens_per_expert_E: Tensor) -> Tensor:
        """Rows [N, D] sorted by expert, in the dtype the products shall run in; returns rows in the same order."""
        gate_up_EFD, down_EDF = self.gate_up_EFD.to(x_ND.dtype), self.down_EDF.to(x_ND.dtype)
        kernel = grouped_swiglu if grouped_mm_accepts(x_ND.dtype, *down_EDF.shape[1:]) else looped_swiglu
        return kernel(x_ND, gate_up_EFD, down_EDF, tokens_per_expert_E)
