"""The language model: embedding, blocks, final norm, head; with the sensor and the actuator of its routing.

    x = embed(ids) ;  per block: x += mixer(norm x), x += MoE(norm x) ;  logits = norm(x) W_head
Mixers attend (Mixtral, arXiv 2401.04088; with mapped weights it computes what transformers.MixtralForCausalLM computes)
or are recurrent (RWKV-7, 2503.14456), as the schedule says: blocks.py, schedule.py.

Sensor and actuator of its routing: steerable.py. Training mode alone is counted, and no padding.

Axes: B batch, S sequence, C context (past and present), D dim, V vocabulary, L MoE layers, E experts, C channels
(of the sensor), T = B*S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from chronomoe.model.attention import Rotation, allowed_pairs, rotary_angles
from chronomoe.model.blocks import Context, RwkvBlock, TransformerBlock
from chronomoe.model.cross_entropy import cross_entropy
from chronomoe.model.expert_choice import (
    EXPERTS_PER_TOKEN,
    follow_threshold,
    initial_threshold,
    threshold_probe,
)
from chronomoe.model.experts import ExpertBank
from chronomoe.model.moe import MoELayer
from chronomoe.model.norm import build_norm
from chronomoe.model.products import Linear, keep_working_copy, working
from chronomoe.model.router import RouterOutput, TopKRouter, wide
from chronomoe.model.rwkv import HEAD_DIM
from chronomoe.model.schedule import RWKV
from chronomoe.model.sensor import Probe, read_layer
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.model.state import KeyValueCache, RecurrentState, StreamState
from chronomoe.model.steerable import Steerable
from chronomoe.settings import InputError


class Output(NamedTuple):
    hidden_BSD: Tensor
    """What the head reads, in the dtype of its product."""
    routings: list[RouterOutput]
    """One per MoE layer; empty for a dense model."""
    head: Linear

    @property
    def logits_BSV(self) -> Tensor:
        """Formed when asked for; training asks for the loss alone, which never holds them."""
        logits_BSV: Tensor = self.head(self.hidden_BSD)
        return logits_BSV

    @property
    def last_logits_BV(self) -> Tensor:
        """Of the token after the last one alone, which is all that decoding asks for."""
        logits_BV: Tensor = self.head(self.hidden_BSD[:, -1])
        return logits_BV

    def loss(self, targets_BS: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, fp32."""
        head_VD = working(self.head.weight, self.hidden_BSD.dtype)
        return cross_entropy(self.hidden_BSD.flatten(0, 1), head_VD, targets_BS.flatten(), self.head.library)


class LanguageModel(Steerable):
    """`LanguageModel(settings, router, actuation)(ids).logits_BSV`. Build under `torch.device("meta")` to size it."""

    threshold_LE: Tensor | None
    """Of causal expert choice: the score above which an expert takes a token; None for every other router."""
    fp32_buffers = (*Steerable.fp32_buffers, "threshold_LE")

    def __init__(self, settings: ModelSettings, router: RouterSettings, actuation: str = "selection") -> None:
        super().__init__()
        self.settings, self.router_settings = settings, router
        self.embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.embedding_norm = build_norm(settings) if settings.norm == "layer" else None
        first = settings.kinds.index(RWKV) if RWKV in settings.kinds else None
        self.blocks = nn.ModuleList(
            RwkvBlock(settings, router, actuation, layer, is_first=layer == first)
            if kind == RWKV
            else TransformerBlock(settings, router, actuation, layer)
            for layer, kind in enumerate(settings.kinds)
        )
        self.norm = build_norm(settings)
        self.head = Linear(settings.dim, settings.vocab_size)
        if settings.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.add_field(settings.num_moe_layers, settings.num_experts)
        by_threshold = router.kind == "expert_choice" and router.causal and not settings.dense
        self.register_buffer("threshold_LE", torch.zeros_like(self.expert_bias_LE) if by_threshold else None)
        self.attach([])
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
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.bias.zero_()
        for buffer in self.buffers():
            buffer.zero_()
        if self.threshold_LE is not None:
            taken = self.router_settings.experts_per_token
            self.threshold_LE.fill_(initial_threshold(taken, self.settings.num_experts, std * dim**0.5))
        if RWKV in self.settings.kinds:
            return self.reset_hybrid()
        nn.init.normal_(self.head.weight, 0.0, min(std, 2 / dim if self.settings.tie_embeddings else 0.5 * dim**-0.5))

    def reset_hybrid(self) -> None:
        """What RWKV-7 starts from (arXiv 2503.14456, official trainer): its blocks their own way, an orthogonal head,
        and an embedding near zero, whose scale the norm behind it takes away; a tied one starts as the head does."""
        vocab_size, dim = self.head.weight.shape
        nn.init.uniform_(self.embedding.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, 0.5 * max(1.0, vocab_size / dim) ** 0.5)
        for block in self.blocks:
            if isinstance(block, RwkvBlock):
                block.reset_parameters()

    def routers(self) -> list[TopKRouter]:
        layers = [block.ffn for block in self.blocks if isinstance(block.ffn, MoELayer)]
        return [layer.router for layer in layers if isinstance(layer.router, TopKRouter)]

    def keep_working_copies(self, dtype: torch.dtype, *, half_gradients: bool) -> None:
        """Cast every matrix that multiplies in `dtype` once per optimizer step: products.py, `keep_working_copy`."""
        for module in self.modules():
            if isinstance(module, Linear | ExpertBank):
                for weight in module.parameters(recurse=False):
                    keep_working_copy(weight, dtype, half_gradient=half_gradients)

    def own_probes(self) -> list[Probe]:
        if self.router_settings.kind != "expert_choice" or self.settings.dense:
            return []
        following = [] if self.threshold_LE is None else [threshold_probe(self.router_settings.experts_per_token)]
        return [EXPERTS_PER_TOKEN, *following]

    @torch.no_grad()
    def settle(self, readings: dict[str, Tensor]) -> None:
        """Thresholds follow what was read."""
        if self.threshold_LE is not None:
            self.threshold_LE.copy_(follow_threshold(self.threshold_LE, readings["threshold"]))

    def forward(
        self,
        input_ids_BS: Tensor,
        *,
        real_BC: Tensor | None = None,
        document_BS: Tensor | None = None,
        state: StreamState | None = None,
    ) -> Output:
        """Logits of the next token at every position.

        real_BC: bool, False at padding, over past and present; padding is neither seen nor counted.
        document_BS: int, the document of each token; attention and recurrence stay inside a document.
        state: of the tokens before these, which it is extended by in place; positions continue.
        """
        assert state is None or document_BS is None, "a state is of one document a row: pack, or stream"
        batch, length = input_ids_BS.shape
        past, position = (state.context, state.position) if state else (0, 0)
        settings, device = self.settings, input_ids_BS.device
        if real_BC is not None:
            real_BC = real_BC[:, -(past + length) :]
        context = Context(
            rotation=self.rotation(position, length, state) if settings.positions == "rope" else None,
            allowed_B1SC=allowed_pairs(
                batch,
                past,
                length,
                real_BC=real_BC,
                document_BS=document_BS,
                window=settings.attention_window,
                device=device,
            ),
            real_BS=None if real_BC is None else real_BC[:, past:],
            starts_BS=None if document_BS is None else document_starts(document_BS),
        )
        x_BSD = self.embedding(input_ids_BS)
        if self.embedding_norm is not None:
            x_BSD = self.embedding_norm(x_BSD).to(x_BSD.dtype)
        routings: list[RouterOutput] = []
        readings: list[Tensor] = []
        bias_LE = self.expert_bias_LE if self.threshold_LE is None else self.expert_bias_LE - self.threshold_LE
        heated = state is None or not self.log_temperature_LE.is_cpu or bool(self.log_temperature_LE.any())
        for layer, block in enumerate(self.blocks):
            heat_E = self.log_temperature_LE[layer] if heated and not self.settings.dense else None
            field = (bias_LE[layer], heat_E) if not self.settings.dense else None
            x_BSD, routed = block(x_BSD, context, state.layers[layer] if state else None, field)
            if routed is not None:
                routings.append(routed.routing)
                if self.training and self.sensing:
                    readings.append(read_layer(routed, self.probes))
        if state is not None:
            state.position += length
        if readings:
            self.sensor_LEC += torch.stack(readings)
        return Output(self.norm(x_BSD), routings, self.head)

    def rotation(self, position: int, length: int, state: StreamState | None = None) -> Rotation:
        """Of `length` positions from `position` on, cut from the state's table, or formed anew where that ends."""
        table = state.rotation if state else None
        if table is not None and position + length <= len(table.cos_SA):
            return Rotation(*(of_SA[position : position + length] for of_SA in table))
        weight, settings = self.embedding.weight, self.settings
        positions_S = torch.arange(position, position + length, device=weight.device)
        return rotary_angles(positions_S, settings.dim // settings.num_heads, settings.rope_theta, wide(weight))

    def new_state(self, batch: int, capacity: int = 0) -> StreamState:
        """Nothing read yet, where and as precise as the weights are; with room for `capacity` tokens, and more when
        they come.

        Raises InputError for a router that has no rule for decoding.
        """
        if self.router_settings.kind == "expert_choice" and not self.router_settings.causal:
            raise InputError(
                "router.causal=false lets experts compare a token with later ones, which decoding does not have: "
                "train with router.causal=true"
            )
        settings, like = self.settings, self.embedding.weight.detach()
        width = settings.dim // settings.num_heads
        layers = [
            RecurrentState(batch, settings.dim, settings.dim // HEAD_DIM, like)
            if kind == RWKV
            else KeyValueCache(
                batch, settings.num_kv_heads, width, like, capacity=capacity, window=settings.attention_window
            )
            for kind in settings.kinds
        ]
        state = StreamState(layers)
        if settings.positions == "rope":
            state.rotation = self.rotation(0, capacity)
        return state


def document_starts(document_BS: Tensor) -> Tensor:
    """bool [B, S], True at the first token of every document but the one that goes on from before."""
    starts_BS = torch.zeros_like(document_BS, dtype=torch.bool)
    starts_BS[:, 1:] = document_BS[:, 1:] != document_BS[:, :-1]
    return starts_BS


def number_documents(input_ids_BS: Tensor, end_of_document: int) -> Tensor:
    """The document index of each token in a packed sequence; the end token belongs to the document it ends."""
    ends_BS = (input_ids_BS == end_of_document).long()
    return ends_BS.cumsum(dim=1) - ends_BS
