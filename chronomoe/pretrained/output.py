"""What a loaded model gives back and says of itself, in the terms of our own.

Axes: B batch, S sequence, V vocabulary, L MoE layers, T = B*S.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.model.lm import Output
from chronomoe.model.router import wide


@dataclass(frozen=True, kw_only=True)
class PretrainedSettings:
    """What callers of `LanguageModel.settings` ask for."""

    vocab_size: int
    dim: int
    num_layers: int
    num_experts: int
    num_moe_layers: int
    """L: layers that own a router."""
    max_seq_len: float
    longest_text: float
    """Tokens that can be read in one go of streaming."""
    document_mask: bool = False
    dense: bool = False


class PretrainedOutput(Output):
    """`head` is the base's own."""

    __slots__ = ()

    def loss(self, targets_BS: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, in fp32 or wider."""
        logits_BSV = self.logits_BSV
        targets_T = targets_BS.flatten().to(logits_BSV.device)
        return cross_entropy(logits_BSV.flatten(0, 1).to(wide(logits_BSV)), targets_T)
