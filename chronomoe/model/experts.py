"""A bank of experts and the kernels that run it over tokens grouped by expert.

    expert_e(x) = W_down,e (silu(W_gate,e x) * W_up,e x)   (swiglu, arXiv 2002.05202; Mixtral)
    expert_e(x) = W_down,e act(W_up,e x)                   (relu: Switch, arXiv 2101.03961; others: feedforward.py)
Rows arrive sorted by expert, each expert's tokens one block, and the bank is products of blocks; or as a fixed number
of slots per expert, and the bank is batched products.

| kernel | how | where |
|---|---|---|
| blocked | one block after another, backward written out: blocked_experts.py | processors |
| grouped | two grouped products; borders stay on the device | GPUs |
| looped | one block after another under autograd | the reference; coarse experts on GPUs |

Axes: P rows sorted by expert, p rows of one expert, C slots per expert, D model dim, F hidden dim (gate above up under
swiglu), E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm

from chronomoe.model.blocked_experts import BLOCK_SIZES, BlockedExperts
from chronomoe.model.elementwise import as_chosen
from chronomoe.model.feedforward import ACTIVATIONS, Activation
from chronomoe.model.few_tokens import FEW_TOKENS, FewBlocks, run_few, take
from chronomoe.model.products import few, working


def run_grouped(
    x_PD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, rows_per_expert_E: Tensor, activation: Activation
) -> Tensor:
    """All experts in two grouped products; group borders stay on the device, so nothing waits for the host."""
    ends_E = rows_per_expert_E.cumsum(0).to(torch.int32)
    hidden_PF = activation.join(grouped_mm(x_PD.contiguous(), gate_up_EFD.transpose(1, 2), offs=ends_E))
    return grouped_mm(hidden_PF, down_EDF.transpose(1, 2), offs=ends_E)


def run_looped(
    x_PD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, rows_per_expert_E: Tensor, activation: Activation
) -> Tensor:
    """One expert after another: the reference, and the way for shapes and dtypes that grouped_mm refuses."""
    blocks = x_PD.split(rows_per_expert_E.tolist())
    return torch.cat([activation.join(x_pD @ gate_up_EFD[e].T) @ down_EDF[e].T for e, x_pD in enumerate(blocks)])


def run_batched(x_ECD: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor, activation: Activation) -> Tensor:
    """Every expert over as many slots, [E, C, D] to [E, C, D]; an empty slot (0) gives 0."""
    return torch.bmm(activation.join(torch.bmm(x_ECD, gate_up_EFD.transpose(1, 2))), down_EDF.transpose(1, 2))


def grouped_mm_accepts(dtype: torch.dtype, *widths: int) -> bool:
    """grouped_mm multiplies fp32, fp16 and bf16 whose rows are whole multiples of 16 bytes."""
    return dtype in (torch.float32, torch.float16, torch.bfloat16) and all(w * dtype.itemsize % 16 == 0 for w in widths)


class ExpertBank(nn.Module):
    """All experts of one layer as two packed tensors: gate and up projections fused (up alone under relu), and the
    down projection."""

    kernel: str = "auto"
    """`auto`: blocked on a processor, grouped elsewhere; a tuner may name another."""
    library: str = "torch"
    """Who multiplies fp32 on a processor."""
    elementwise: str = "eager"
    """Whether the grouped kernel's activation is `compiled`."""

    def __init__(self, num_experts: int, dim: int, hidden_dim: int, activation: str = "swiglu") -> None:
        super().__init__()
        self.activation = activation
        self.gate_up_EFD = nn.Parameter(torch.empty(num_experts, ACTIVATIONS[activation].parts * hidden_dim, dim))
        self.down_EDF = nn.Parameter(torch.empty(num_experts, dim, hidden_dim))

    def weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return working(self.gate_up_EFD, dtype), working(self.down_EDF, dtype)

    def kernel_for(self, device_type: str, dtype: torch.dtype) -> str:
        """The kernel asked for, or the nearest that takes these: grouped products refuse some dtypes and widths."""
        kernel = self.kernel
        if kernel == "auto":
            kernel = "blocked" if device_type == "cpu" else "grouped"
        if kernel == "grouped" and not grouped_mm_accepts(dtype, *self.down_EDF.shape[1:]):
            kernel = "looped"
        return kernel

    def block_sizes(self, device_type: str, dtype: torch.dtype) -> list[int] | None:
        """Numbers of rows an expert may be given; None: any."""
        return BLOCK_SIZES if self.kernel_for(device_type, dtype) == "blocked" else None

    def forward(self, x_PD: Tensor, rows_per_expert_E: Tensor) -> Tensor:
        """Rows [P, D] sorted by expert, in the dtype the products shall run in; returns rows in the same order."""
        gate_up_EFD, down_EDF = self.weights(x_PD.dtype)
        kernel = self.kernel_for(x_PD.device.type, x_PD.dtype)
        if kernel == "blocked":
            y_PD: Tensor = BlockedExperts.apply(
                x_PD.contiguous(), gate_up_EFD, down_EDF, rows_per_expert_E, ACTIVATIONS[self.activation], self.library
            )
            return y_PD
        run = run_grouped if kernel == "grouped" else run_looped
        activation = ACTIVATIONS[self.activation]
        activation = activation._replace(join=as_chosen(activation.join, self.elementwise))
        return run(x_PD, gate_up_EFD, down_EDF, rows_per_expert_E, activation)

    def few(self, x_TD: Tensor, groups: list[FewBlocks]) -> Tensor:
        """Of the rows of these blocks, one group after the other, [P, D]; without a gradient."""
        gate_up_EFD, down_EDF = self.weights(x_TD.dtype)
        join, done = ACTIVATIONS[self.activation].join, []
        for experts_n, token_P in groups:
            shape = (len(experts_n), -1, x_TD.shape[1])
            x_nCD = x_TD.expand(shape) if len(x_TD) == 1 else take(x_TD, token_P).view(shape)
            hidden_nCF = join(run_few(x_nCD, gate_up_EFD, experts_n))
            done.append(run_few(hidden_nCF.contiguous(), down_EDF, experts_n).flatten(0, 1))
        return done[0] if len(done) == 1 else torch.cat(done)

    def takes_few(self, x_TD: Tensor) -> bool:
        """Whether so few tokens are better read off one chosen expert after another than sorted."""
        return self.kernel == "auto" and few(x_TD, len(x_TD), FEW_TOKENS)

    def batched(self, x_ECD: Tensor) -> Tensor:
        """Slots [E, C, D] in the dtype the products shall run in; returns as many."""
        return run_batched(x_ECD, *self.weights(x_ECD.dtype), ACTIVATIONS[self.activation])
