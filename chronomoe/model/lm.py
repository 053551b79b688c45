"""The language model: embedding, Mixtral blocks, final norm, head; with the sensor and the actuator of its routing.

    x = embed(ids) ;  per block: x += attention(norm x), x += MoE(norm x) ;  logits = norm(x) W_head
Architecture: Mixtral, arXiv 2401.04088 (RMSNorm: 1910.07467). With mapped weights it computes what
transformers.MixtralForCausalLM computes.

Sensor: `routing_2LE`, what every layer's tokens did since somebody last cleared it (training mode only, no padding).
Actuator: `expert_bias_LE` and `log_temperature_LE`, fp32, saved with the weights. The model reads the field and
writes the sensor; it never writes the field.

Axes: B batch, S sequence, C context (past and present), D dim, V vocabulary, L MoE layers, E experts, T = B*S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from chronomoe.model.attention import Attention, KeyValueCache, Rotation, allowed_pairs, rotary_angles
from chronomoe.model.experts import ExpertBank
from chronomoe.model.moe import MoELayer, read_routing
from chronomoe.model.router import RouterOutput, TopKRouter
from chronomoe.model.settings import ModelSettings, RouterSettings


class Output(NamedTuple):
    logits_BSV: Tensor
    routings: list[RouterOutput]
    """One per MoE layer; empty for a dense model."""


class SwiGLU(nn.Module):
    """The feed-forward layer of a dense model."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(silu(gate) * up)


class Block(nn.Module):
    def __init__(self, model: ModelSettings, router: RouterSettings, actuation: str) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.dim, model.norm_eps)
        self.attention = Attention(model.dim, model.num_heads, model.num_kv_heads)
        self.ffn_norm = nn.RMSNorm(model.dim, model.norm_eps)
        self.ffn: MoELayer | SwiGLU
        if model.dense:
            self.ffn = SwiGLU(model.dim, router.top_k * model.hidden_dim)
        else:
            gate = TopKRouter(model.dim, model.num_experts, router.top_k, actuation)
            self.ffn = MoELayer(gate, ExpertBank(model.num_experts, model.dim, model.hidden_dim))

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation,
        allowed_B1SC: Tensor | None,
        cache: KeyValueCache | None,
        field: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, RouterOutput | None]:
        """`field` is this layer's (bias, log-temperature), each [E]; None in a dense model."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotation, allowed_B1SC, cache)
        h_BSD = self.ffn_norm(x_BSD)
        if field is None:
            return x_BSD + self.ffn(h_BSD), None
        y_TD, routing = self.ffn(h_BSD.flatten(0, 1), *field)
        return x_BSD + y_TD.view_as(x_BSD), routing


class LanguageModel(nn.Module):
    """`LanguageModel(settings, router, actuation)(ids).logits_BSV`. Build under `torch.device("meta")` to size it."""

    expert_bias_LE: Tensor
    log_temperature_LE: Tensor
    routing_2LE: Tensor

    def __init__(self, settings: ModelSettings, router: RouterSettings, actuation: str = "selection") -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.blocks = nn.ModuleList(Block(settings, router, actuation) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.dim, settings.norm_eps)
        self.head = nn.Linear(settings.dim, settings.vocab_size, bias=False)
        if settings.tie_embeddings:
            self.head.weight = self.embedding.weight
        shape = (settings.num_moe_layers, settings.num_experts)
        self.register_buffer("expert_bias_LE", torch.zeros(shape))
        self.register_buffer("log_temperature_LE", torch.zeros(shape))
        self.register_buffer("routing_2LE", torch.zeros(2, *shape, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights of `init_std`; the head smaller in wide models, so that the first loss is about ln V.

        An output logit has standard deviation std * sqrt(dim), which raises the first loss by half its square; a tied
        head also answers its own input token with std * dim. Both are kept small.
        """
        dim, std = self.settings.dim, self.settings.init_std
        for parameter in self.parameters():
            parameter.normal_(0.0, std) if parameter.dim() > 1 else parameter.fill_(1.0)  # vectors are norms
        for buffer in self.buffers():
            buffer.zero_()
        nn.init.normal_(self.head.weight, 0.0, min(std, 2 / dim if self.settings.tie_embeddings else 0.5 * dim**-0.5))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        """Move and cast as usual, but keep the field in fp32: bf16 would round a bias of 7 to steps of 0.03."""
        field = {name: getattr(self, name) for name in ("expert_bias_LE", "log_temperature_LE")}
        super()._apply(fn, recurse)
        for name, before in field.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                setattr(self, name, before.to(after.device))
        return self

    def forward(
        self,
        input_ids_BS: Tensor,
        *,
        real_BC: Tensor | None = None,
        document_BS: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Output:
        """Logits of the next token at every position.

        real_BC: bool, False at padding, over past and present; padding is neither seen nor counted.
        document_BS: int, the document of each token; attention stays inside a document.
        caches: one per block, extended in place; positions continue after what they hold.
        """
        batch, length = input_ids_BS.shape
        past = caches[0].length if caches else 0
        device = input_ids_BS.device
        head_dim = self.settings.dim // self.settings.num_heads
        rotation = rotary_angles(torch.arange(past, past + length, device=device), head_dim, self.settings.rope_theta)
        allowed = allowed_pairs(batch, past, length, real_BC=real_BC, document_BS=document_BS, device=device)
        x_BSD = self.embedding(input_ids_BS)
        routings: list[RouterOutput] = []
        for layer, block in enumerate(self.blocks):
            field = (self.expert_bias_LE[layer], self.log_temperature_LE[layer]) if not self.settings.dense else None
            x_BSD, routing = block(x_BSD, rotation, allowed, caches[layer] if caches else None, field)
            if routing is not None:
                routings.append(routing)
        if self.training and routings:
            real_T = None if real_BC is None else real_BC[:, past:].flatten()
            readings = [read_routing(routing, real_T) for routing in routings]
            self.routing_2LE += torch.stack(readings, dim=1)
        return Output(linear(self.norm(x_BSD), self.head.weight), routings)

    def new_caches(self, batch: int, capacity: int) -> list[KeyValueCache]:
        """Empty key-value caches for `capacity` tokens, one per block, where and as precise as the weights are."""
        settings = self.settings
        width = settings.dim // settings.num_heads
        like = self.embedding.weight
        return [KeyValueCache(batch, settings.num_kv_heads, capacity, width, like) for _ in range(settings.num_layers)]


def number_documents(input_ids_BS: Tensor, end_of_document: int) -> Tensor:
    """The document index of each token in a packed sequence; the end token belongs to the document it ends."""
    ends_BS = (input_ids_BS == end_of_document).long()
    return ends_BS.cumsum(dim=1) - ends_BS
