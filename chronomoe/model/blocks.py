"""The two blocks of a stack: one attends, one is recurrent; both have a mixture of experts behind.

    transformer:  x += attention(norm x)  ;  x += MoE(norm x)
    RWKV-7:       x += time_mix(norm x)   ;  u = norm x ;  x += MoE(u_t + mu (u_{t-1} - u_t))
An RWKV block shifts its tokens once, before they are routed: gate and experts see the same, and experts hold no state.

Axes: B batch, S sequence, C context (past and present), D dim, E experts, T = B*S.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chronomoe.model.attention import Attention, Rotation
from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import FeedForward
from chronomoe.model.moe import MoELayer, build_moe
from chronomoe.model.norm import build_norm
from chronomoe.model.rwkv import TimeMix, TimeMixState
from chronomoe.model.sensor import LayerState
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.model.state import KeyValueCache, RecurrentState
from chronomoe.model.token_shift import token_shift

Field = tuple[Tensor, Tensor | None]
"""One layer's (bias, log-temperature), each [E]; no log-temperature is the neutral one."""


@dataclass
class Context:
    """What all blocks know of one forward pass."""

    rotation: Rotation | None
    """None: attention without positions."""
    allowed_B1SC: Tensor | None
    """Where a query may look; None: plain causal attention over the sequence itself."""
    real_BS: Tensor | None = None
    """bool, False at padding; None: all are real."""
    starts_BS: Tensor | None = None
    """bool, True where a document begins, before which nothing is remembered; None: nowhere."""
    v_first_BSD: Tensor | None = None
    """Values of the stack's first RWKV block, into which the later ones mix theirs."""

    @property
    def real_T(self) -> Tensor | None:
        return None if self.real_BS is None else self.real_BS.flatten()


def build_ffn(
    model: ModelSettings, router: RouterSettings, actuation: str, layer: int, activation: str
) -> MoELayer | FeedForward:
    """A layer of experts; in a dense model one as wide as those a token visits."""
    if not model.dense:
        return build_moe(model, router, actuation, layer, activation)
    width = round((router.experts_per_token + model.num_shared_experts) * model.hidden_dim)
    return FeedForward(model.dim, width, activation)


class Block(nn.Module):
    ffn: MoELayer | FeedForward

    def mix_experts(self, h_BSD: Tensor, field: Field | None, context: Context) -> tuple[Tensor, LayerState | None]:
        """The experts' answer to tokens [B, S, D]; `field` is None in a dense model."""
        if field is None:
            return self.ffn(h_BSD), None
        y_TD, state = self.ffn(h_BSD.flatten(0, 1), *field, context.real_T)
        return y_TD.view_as(h_BSD), state


class TransformerBlock(Block):
    def __init__(self, model: ModelSettings, router: RouterSettings, actuation: str, layer: int) -> None:
        super().__init__()
        self.attention_norm = build_norm(model)
        self.attention = Attention(model.dim, model.num_heads, model.num_kv_heads)
        self.ffn_norm = build_norm(model)
        self.ffn = build_ffn(model, router, actuation, layer, model.activation)

    def forward(
        self, x_BSD: Tensor, context: Context, cache: KeyValueCache | None, field: Field | None
    ) -> tuple[Tensor, LayerState | None]:
        h_BSD = self.attention_norm(x_BSD)
        x_BSD = x_BSD + self.attention(h_BSD, context.rotation, context.allowed_B1SC, cache)
        y_BSD, state = self.mix_experts(self.ffn_norm(x_BSD), field, context)
        return x_BSD + y_BSD, state


class RwkvBlock(Block):
    def __init__(
        self, model: ModelSettings, router: RouterSettings, actuation: str, layer: int, is_first: bool
    ) -> None:
        super().__init__()
        self.time_mix_norm = build_norm(model)
        self.time_mix = TimeMix(model.dim, layer, model.num_layers, first=is_first)
        self.ffn_norm = build_norm(model)
        self.channel_shift_D = nn.Parameter(torch.empty(model.dim))
        self.ffn = build_ffn(model, router, actuation, layer, "squared_relu")
        self.depth = layer / model.num_layers

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official start: experts that add nothing yet, tokens that mix less with their neighbours further up."""
        self.time_mix.reset_parameters()
        dim = len(self.channel_shift_D)
        ramp_D = torch.arange(dim, dtype=torch.float64) / dim
        self.channel_shift_D.copy_(1.0 - ramp_D ** (1.0 - self.depth) ** 4)
        banks = [module for module in self.ffn.modules() if isinstance(module, ExpertBank)]
        layers = [
            module for module in self.ffn.modules() if isinstance(module, FeedForward)
        ]  # dense, or shared experts
        for up_FD in (*(up for bank in banks for up in bank.gate_up_EFD), *(layer.gate_up.weight for layer in layers)):
            nn.init.orthogonal_(up_FD)
        for down in (*(bank.down_EDF for bank in banks), *(layer.down.weight for layer in layers)):
            down.zero_()

    def forward(
        self, x_BSD: Tensor, context: Context, cache: RecurrentState | None, field: Field | None
    ) -> tuple[Tensor, LayerState | None]:
        before = None if cache is None else TimeMixState(cache.time_shift_BD, cache.wkv_BHNN)
        mixed = self.time_mix(
            self.time_mix_norm(x_BSD),
            before,
            context.v_first_BSD,
            starts_BS=context.starts_BS,
            valid_BS=context.real_BS,
        )
        context.v_first_BSD = mixed.v_first_BSD
        x_BSD = x_BSD + mixed.out_BSD
        u_BSD = self.ffn_norm(x_BSD)
        earlier_BD = u_BSD.new_zeros(len(u_BSD), u_BSD.shape[-1]) if cache is None else cache.channel_shift_BD
        shifted_BSD, last_BD = token_shift(u_BSD, earlier_BD, context.starts_BS, context.real_BS)
        if cache is not None:
            cache.time_shift_BD, cache.wkv_BHNN = mixed.state
            cache.channel_shift_BD = last_BD
        h_BSD = u_BSD + self.channel_shift_D.to(u_BSD.dtype) * (shifted_BSD - u_BSD)
        y_BSD, state = self.mix_experts(h_BSD, field, context)
        return x_BSD + y_BSD, state
