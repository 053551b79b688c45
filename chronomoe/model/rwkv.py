"""RWKV-7 time mixing (arXiv 2503.14456): linear in the length of a sequence, with a state of fixed size.

    x^j = x + mu_j (earlier x - x), j in {r, w, k, v, a, g} ;  r, k0, v0 = W_r x^r, W_k x^k, W_v x^v
    log w = -e^(-1/2) sigmoid(w0 + tanh(x^w A_w) B_w) ;  eta = sigmoid(a0 + x^a A_a B_a) ;  g = sigmoid(x^g A_g) B_g
    kappa = k0 xi / |k0 xi| per head ;  k = k0 (1 + (eta - 1) alpha)
    v = v0 + (v_first - v0) sigmoid(nu0 + x^v A_v B_v)
    o = WKV(r, log w, k, v, -kappa, eta kappa) ;  y = W_o (g (GroupNorm(o) + (sum over head of r k rho) v))
WKV is wkv.py's recurrence. v_first is v of the first RWKV layer of the model, which itself has no value LoRA. From
log w to y everything is fp32 under autocast, the state always.

Axes: B batch, S sequence, D model dim, H heads, N head width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize

from chronomoe.model.chunked_wkv import wkv_chunked
from chronomoe.model.fla_backend import fla_takes, wkv_by_fla
from chronomoe.model.products import Linear, full_precision, product_dtype, working
from chronomoe.model.token_shift import token_shift
from chronomoe.model.wkv import LOWEST_LOG_DECAY, Inputs, wkv_recurrent

HEAD_DIM = 64
NORM_EPS = 64e-5
MIXED = "rwkvag"
"""What has a token shift of its own: receptance, decay, key, value, learning rate, gate."""
FEW_TOKENS = 16
"""Pieces up to this length go token by token: a chunk costs more, however little of it is filled."""
MODES = ("auto", "chunk", "recurrent")


class TimeMixState(NamedTuple):
    shift_BD: Tensor
    """The last token's input, in the activations' dtype."""
    wkv_BHNN: Tensor
    """Key x value, fp32."""


class TimeMixOutput(NamedTuple):
    out_BSD: Tensor
    state: TimeMixState
    v_first_BSD: Tensor
    """To be given to the model's later RWKV layers; of these tokens, no part of the state."""


class Ranks(NamedTuple):
    decay: int
    rate: int
    value: int
    gate: int


def lora_ranks(dim: int) -> Ranks:
    """The published rule: multiples of 32 that grow with the square root of the width."""
    return Ranks(*(max(32, 32 * round(factor * dim**0.5 / 32)) for factor in (2.5, 2.5, 1.7, 5.0)))


class LoRA(nn.Module):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down_DR = nn.Parameter(torch.empty(dim, rank))
        self.up_RD = nn.Parameter(torch.empty(rank, dim))

    def forward(self, x: Tensor, between: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """In fp32 or wider, whatever the products were in: what is made of it needs the digits of its bias."""
        low = x @ working(self.down_DR, x.dtype)
        y = (between(low) if between else low) @ working(self.up_RD, x.dtype)
        return y.to(torch.promote_types(y.dtype, torch.float32))


class TimeMix(nn.Module):
    def __init__(self, dim: int, layer: int, num_layers: int, *, first: bool, head_dim: int = HEAD_DIM) -> None:
        """`layer` of `num_layers`, counted from 0 over blocks of every kind, sets the initial values; `first`: the
        first RWKV layer of the schedule, whatever comes before."""
        super().__init__()
        if dim % head_dim:
            raise ValueError(f"dim {dim} is not a multiple of the head width {head_dim}")
        self.layer, self.num_layers, self.first, self.heads = layer, num_layers, first, dim // head_dim
        ranks = lora_ranks(dim)
        for name in MIXED:
            self.register_parameter(f"mix_{name}_D", nn.Parameter(torch.empty(dim)))
        self.receptance, self.key, self.value, self.out = (Linear(dim, dim) for _ in range(4))
        self.decay_D, self.decay_lora = nn.Parameter(torch.empty(dim)), LoRA(dim, ranks.decay)
        self.rate_D, self.rate_lora = nn.Parameter(torch.empty(dim)), LoRA(dim, ranks.rate)
        self.gate_lora = LoRA(dim, ranks.gate)
        if not first:
            self.residual_D, self.residual_lora = nn.Parameter(torch.empty(dim)), LoRA(dim, ranks.value)
        self.key_scale_D = nn.Parameter(torch.empty(dim))
        self.key_rate_D = nn.Parameter(torch.empty(dim))
        self.bonus_HN = nn.Parameter(torch.empty(self.heads, head_dim))
        self.norm_weight_D, self.norm_bias_D = (nn.Parameter(torch.empty(dim)) for _ in range(2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official training code's values. The decay's spread differs between channels and within each head; the
        output projection is zero, so that a new layer does nothing."""
        dim, head_dim = len(self.decay_D), self.bonus_HN.shape[1]
        depth = self.layer / (self.num_layers - 1) if self.num_layers > 1 else 0.0  # 0 to 1
        left = 1 - self.layer / self.num_layers  # 1 to nearly 0
        i = torch.arange(dim, dtype=torch.float64)
        along = i / max(dim - 1, 1)  # 0 to 1
        within = (i % head_dim - (head_dim - 1) / 2) / max((head_dim - 1) / 2, 1)  # -1 to 1, per head
        zigzag = within * within.abs()
        for names, power in (("rg", 0.2), ("wa", 0.9), ("kv", 0.7)):
            for name in names:
                self.get_parameter(f"mix_{name}_D").copy_(1 - (i / dim) ** (power * left))
        self.decay_D.copy_(-5.5 + 6 * along ** (1 + depth**0.3) + 2.5 * zigzag)
        self.rate_D.copy_(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
        self.key_scale_D.copy_(0.71 - 0.1 * (along - 0.5))
        self.key_rate_D.fill_(1.02)
        self.bonus_HN.fill_(-0.04)
        self.norm_weight_D.fill_(((self.layer + 1) / self.num_layers) ** 0.7)
        self.norm_bias_D.zero_()
        for projection, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(projection.weight, gain)
        self.out.weight.zero_()
        if not self.first:
            self.residual_D.copy_(0.73 - 0.4 * (along - 0.5))
        for lora in (module for module in self.children() if isinstance(module, LoRA)):
            lora.down_DR.zero_()
            nn.init.orthogonal_(lora.up_RD, 0.1)

    def new_state(self, batch: int) -> TimeMixState:
        """Of a sequence's beginning: zeros, where and as precise as the weights are, the recurrence's in fp32."""
        dim, width = len(self.decay_D), self.bonus_HN.shape[1]
        dtype = torch.promote_types(self.decay_D.dtype, torch.float32)
        wkv_BHNN = self.decay_D.new_zeros(batch, self.heads, width, width, dtype=dtype)
        return TimeMixState(self.decay_D.new_zeros(batch, dim), wkv_BHNN)

    def forward(
        self,
        x_BSD: Tensor,
        state: TimeMixState | None = None,
        v_first_BSD: Tensor | None = None,
        *,
        starts_BS: Tensor | None = None,
        valid_BS: Tensor | None = None,
        mode: str = "auto",
    ) -> TimeMixOutput:
        """Any split of a sequence into pieces, each given the state of the one before, is the same function.

        state: None is the beginning; never changed in place.
        v_first_BSD: what the model's first RWKV layer returned; that layer itself takes none.
        starts_BS: True where a document begins, before which everything is forgotten.
        valid_BS: False at padding, which leaves the state as it is; the output there means nothing.
        mode: `recurrent`: token by token; `chunk`: wkv_chunked; `auto`: the faster, or fla where it can.
        """
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {mode}")
        assert self.first == (v_first_BSD is None), "v_first is for later layers, and needed there"
        x_BSD = x_BSD.to(product_dtype(x_BSD))
        state = state or self.new_state(len(x_BSD))
        earlier_BSD, shift_BD = token_shift(x_BSD, state.shift_BD, starts_BS, valid_BS)
        change_BSD = earlier_BSD - x_BSD
        mixed = {
            name: torch.addcmul(x_BSD, change_BSD, getattr(self, f"mix_{name}_D").to(x_BSD.dtype)) for name in MIXED
        }
        r_BSD, k_BSD, v_BSD = self.receptance(mixed["r"]), self.key(mixed["k"]), self.value(mixed["v"])
        with full_precision(x_BSD.device.type):
            if v_first_BSD is None:
                v_first_BSD = v_BSD
            else:
                share_BSD = (self.residual_D + self.residual_lora(mixed["v"])).sigmoid()
                v_BSD = torch.lerp(v_BSD.to(share_BSD.dtype), v_first_BSD.to(share_BSD.dtype), share_BSD)
            log_w_BSD = LOWEST_LOG_DECAY * (self.decay_D + self.decay_lora(mixed["w"], torch.tanh)).sigmoid()
            eta_BSD = (self.rate_D + self.rate_lora(mixed["a"])).sigmoid()
            inputs = self.form_inputs(r_BSD, log_w_BSD, k_BSD, v_BSD, eta_BSD)
            if valid_BS is not None:
                inputs = silence(inputs, ~valid_BS)
            o_BSHN, wkv_BHNN = run_wkv(inputs, state.wkv_BHNN, starts_BS, valid_BS is not None, mode)
            y_BSD = (self.finish(o_BSHN, inputs) * self.gate_lora(mixed["g"], torch.sigmoid)).to(x_BSD.dtype)
        return TimeMixOutput(self.out(y_BSD), TimeMixState(shift_BD, wkv_BHNN), v_first_BSD)

    def form_inputs(self, r_BSD: Tensor, log_w_BSD: Tensor, k_BSD: Tensor, v_BSD: Tensor, eta_BSD: Tensor) -> Inputs:
        k_BSD, key_rate_D = k_BSD.to(eta_BSD.dtype), self.key_rate_D.to(eta_BSD.dtype)
        kappa_BSHN = normalize(self.by_head(k_BSD * self.key_scale_D), dim=-1, eps=1e-12)
        k_BSD = k_BSD * torch.addcmul(1 - key_rate_D, eta_BSD, key_rate_D)
        r, log_w, k, v, eta = (self.by_head(x) for x in (r_BSD, log_w_BSD, k_BSD, v_BSD, eta_BSD))
        return Inputs(r, log_w, k, v, -kappa_BSHN, eta * kappa_BSHN)

    def finish(self, o_BSHN: Tensor, inputs: Inputs) -> Tensor:
        """Normalised by head, with what a token reads of itself beside the state: [B, S, D]."""
        normal_BSHN = layer_norm(o_BSHN, o_BSHN.shape[-1:], eps=NORM_EPS)  # torch's group_norm is slow on processors
        normal_BSHN = torch.addcmul(self.by_head(self.norm_bias_D), normal_BSHN, self.by_head(self.norm_weight_D))
        bonus_BSH1 = (inputs.r * inputs.k * self.bonus_HN).sum(dim=-1, keepdim=True)
        return torch.addcmul(normal_BSHN, bonus_BSH1, inputs.v).flatten(2)

    def by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


def silence(inputs: Inputs, padding_BS: Tensor) -> Inputs:
    """Padding neither decays, erases nor writes; what it reads is nobody's."""
    gone = padding_BS[..., None, None]
    log_w, k, b = (x.masked_fill(gone, 0.0) for x in (inputs.log_w, inputs.k, inputs.b))
    return inputs._replace(log_w=log_w, k=k, b=b)


def run_wkv(
    inputs: Inputs, state_BHNN: Tensor, starts_BS: Tensor | None, padded: bool, mode: str
) -> tuple[Tensor, Tensor]:
    if mode == "recurrent" or (mode == "auto" and inputs.r.shape[1] <= FEW_TOKENS):
        return wkv_recurrent(*inputs, state_BHNN, starts_BS=starts_BS)
    if mode == "auto" and starts_BS is None and not padded and fla_takes(inputs.r):
        return wkv_by_fla(*inputs, state_BHNN)
    return wkv_chunked(*inputs, state_BHNN, starts_BS=starts_BS)
