"""The language model: embedding, Mixtral blocks, final norm, head; with the sensor and the actuator of its routing.

    x = embed(ids) ;  per block: x += attention(norm x), x += MoE(norm x) ;  logits = norm(x) W_head
Architecture: Mixtral, arXiv 2401.04088 (RMSNorm: 1910.07467). With mapped weights it computes what
transformers.MixtralForCausalLM computes.

Sensor: `sensor_LEC`, what every layer's tokens did since somebody last cleared it (training mode only, no padding).
Actuator: `expert_bias_LE` and `log_temperature_LE`, fp32, saved with the weights. The model reads the field and
writes the sensor; it never writes the field.

Axes: B batch, S sequence, C context (past and present), D dim, V vocabulary, L MoE layers, E experts, C channels
(of the sensor), T = B*S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from chronomoe.model.attention import Attention, KeyValueCache, Rotation, allowed_pairs, rotary_angles
from chronomoe.model.cross_entropy import cross_entropy
from chronomoe.model.expert_choice import EXPERTS_PER_TOKEN, follow_threshold, initial_threshold, threshold_probe
from chronomoe.model.experts import ExpertBank
from chronomoe.model.feedforward import FeedForward
from chronomoe.model.moe import MoELayer, build_moe
from chronomoe.model.norm import RMSNorm
from chronomoe.model.products import Linear, keep_working_copy, working
from chronomoe.model.router import Balancer, RouterOutput
from chronomoe.model.sensor import PLAIN_CHANNELS, LayerState, Probe, read_layer
from chronomoe.model.settings import ModelSettings, RouterSettings
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


class Block(nn.Module):
    def __init__(self, model: ModelSettings, router: RouterSettings, actuation: str, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(model.dim, model.norm_eps)
        self.attention = Attention(model.dim, model.num_heads, model.num_kv_heads)
        self.ffn_norm = RMSNorm(model.dim, model.norm_eps)
        self.ffn: MoELayer | FeedForward
        if model.dense:
            width = round((router.experts_per_token + model.num_shared_experts) * model.hidden_dim)
            self.ffn = FeedForward(model.dim, width, model.activation)
        else:
            self.ffn = build_moe(model, router, actuation, layer)

    def forward(
        self,
        x_BSD: Tensor,
        rotation: Rotation,
        allowed_B1SC: Tensor | None,
        cache: KeyValueCache | None,
        field: tuple[Tensor, Tensor | None] | None,
        real_T: Tensor | None,
    ) -> tuple[Tensor, LayerState | None]:
        """`field` is this layer's (bias, log-temperature), each [E]; None in a dense model. No log-temperature is the
        neutral one."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rotation, allowed_B1SC, cache)
        h_BSD = self.ffn_norm(x_BSD)
        if field is None:
            return x_BSD + self.ffn(h_BSD), None
        y_TD, state = self.ffn(h_BSD.flatten(0, 1), *field, real_T)
        return x_BSD + y_TD.view_as(x_BSD), state


class LanguageModel(nn.Module):
    """`LanguageModel(settings, router, actuation)(ids).logits_BSV`. Build under `torch.device("meta")` to size it."""

    expert_bias_LE: Tensor
    log_temperature_LE: Tensor
    sensor_LEC: Tensor
    threshold_LE: Tensor | None
    """Of causal expert choice: the score above which an expert takes a token; None for every other router."""
    sensing: bool = True
    """Whether training forwards are counted; off while somebody looks ahead without training."""

    def __init__(self, settings: ModelSettings, router: RouterSettings, actuation: str = "selection") -> None:
        super().__init__()
        self.settings, self.router_settings = settings, router
        self.embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.blocks = nn.ModuleList(Block(settings, router, actuation, layer) for layer in range(settings.num_layers))
        self.norm = RMSNorm(settings.dim, settings.norm_eps)
        self.head = Linear(settings.dim, settings.vocab_size)
        if settings.tie_embeddings:
            self.head.weight = self.embedding.weight
        shape = (settings.num_moe_layers, settings.num_experts)
        self.register_buffer("expert_bias_LE", torch.zeros(shape))
        self.register_buffer("log_temperature_LE", torch.zeros(shape))
        by_threshold = router.kind == "expert_choice" and router.causal and not settings.dense
        self.register_buffer("threshold_LE", torch.zeros(shape) if by_threshold else None)
        self.register_buffer("sensor_LEC", torch.zeros(*shape, 0, dtype=torch.int64), persistent=False)
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
        for buffer in self.buffers():
            buffer.zero_()
        if self.threshold_LE is not None:
            taken = self.router_settings.experts_per_token
            self.threshold_LE.fill_(initial_threshold(taken, self.settings.num_experts, std * dim**0.5))
        nn.init.normal_(self.head.weight, 0.0, min(std, 2 / dim if self.settings.tie_embeddings else 0.5 * dim**-0.5))

    def attach(self, probes: list[Probe], balancer: Balancer | None = None, in_evaluation: bool = False) -> None:
        """Let the sensor read `probes` as well, and let `balancer` solve each batch's assignment while training (and,
        if asked, `in_evaluation`)."""
        self.probes = [*self.own_probes(), *probes]
        channels = PLAIN_CHANNELS + sum(probe.channels for probe in self.probes)
        self.sensor_LEC = self.sensor_LEC.new_zeros(*self.expert_bias_LE.shape, channels)
        for block in self.blocks:
            if isinstance(block.ffn, MoELayer):
                block.ffn.router.balancer, block.ffn.router.balance_evaluation = balancer, in_evaluation

    def keep_working_copies(self, dtype: torch.dtype, *, half_gradients: bool) -> None:
        """Cast every matrix that multiplies in `dtype` once per optimizer step: products.py, `keep_working_copy`."""
        for module in self.modules():
            if isinstance(module, Linear | ExpertBank):
                for weight in module.parameters(recurse=False):
                    keep_working_copy(weight, dtype, half_gradient=half_gradients)

    def own_probes(self) -> list[Probe]:
        """What the model's own router asks of the sensor, whoever else watches."""
        if self.router_settings.kind != "expert_choice" or self.settings.dense:
            return []
        following = [] if self.threshold_LE is None else [threshold_probe(self.router_settings.experts_per_token)]
        return [EXPERTS_PER_TOKEN, *following]

    @torch.no_grad()
    def settle(self, readings: dict[str, Tensor]) -> None:
        """Once per optimizer step, with the step's readings of the sensor over all ranks: thresholds follow them."""
        if self.threshold_LE is not None:
            self.threshold_LE.copy_(follow_threshold(self.threshold_LE, readings["threshold"]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LanguageModel:
        """Move and cast as usual, but keep the field in fp32: bf16 would round a bias of 7 to steps of 0.03."""
        field = {name: getattr(self, name) for name in ("expert_bias_LE", "log_temperature_LE", "threshold_LE")}
        super()._apply(fn, recurse)
        for name, before in field.items():
            after = getattr(self, name)
            if after is not None and after.dtype != before.dtype:
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
        rotation = self.rotation(past, length, caches[0].rotation if caches else None)
        allowed = allowed_pairs(batch, past, length, real_BC=real_BC, document_BS=document_BS, device=device)
        x_BSD = self.embedding(input_ids_BS)
        real_T = None if real_BC is None else real_BC[:, past:].flatten()
        routings: list[RouterOutput] = []
        readings: list[Tensor] = []
        bias_LE = self.expert_bias_LE if self.threshold_LE is None else self.expert_bias_LE - self.threshold_LE
        heated = caches is None or not self.log_temperature_LE.is_cpu or bool(self.log_temperature_LE.any())
        for layer, block in enumerate(self.blocks):
            heat_E = self.log_temperature_LE[layer] if heated and not self.settings.dense else None
            field = (bias_LE[layer], heat_E) if not self.settings.dense else None
            x_BSD, state = block(x_BSD, rotation, allowed, caches[layer] if caches else None, field, real_T)
            if state is not None:
                routings.append(state.routing)
                if self.training and self.sensing:
                    readings.append(read_layer(state, self.probes))
        if readings:
            self.sensor_LEC += torch.stack(readings)
        return Output(self.norm(x_BSD), routings, self.head)

    def rotation(self, past: int, length: int, table: Rotation | None = None) -> Rotation:
        """Of `length` positions after `past`, cut from a table that starts at 0, or formed anew where it ends."""
        if table is not None and past + length <= len(table.cos_SA):
            return Rotation(*(of_SA[past : past + length] for of_SA in table))
        positions_S = torch.arange(past, past + length, device=self.embedding.weight.device)
        return rotary_angles(positions_S, self.settings.dim // self.settings.num_heads, self.settings.rope_theta)

    def new_caches(self, batch: int, capacity: int) -> list[KeyValueCache]:
        """Empty key-value caches for `capacity` tokens, one per block, where and as precise as the weights are.

        Raises InputError for a router that has no rule for decoding.
        """
        if self.router_settings.kind == "expert_choice" and not self.router_settings.causal:
            raise InputError(
                "router.causal=false lets experts compare a token with later ones, which decoding does not have: "
                "train with router.causal=true"
            )
        settings = self.settings
        width = settings.dim // settings.num_heads
        like = self.embedding.weight
        caches = [KeyValueCache(batch, settings.num_kv_heads, capacity, width, like) for _ in self.blocks]
        table = self.rotation(0, capacity)
        for cache in caches:
            cache.rotation = table
        return caches


def number_documents(input_ids_BS: Tensor, end_of_document: int) -> Tensor:
    """The document index of each token in a packed sequence; the end token belongs to the document it ends."""
    ends_BS = (input_ids_BS == end_of_document).long()
    return ends_BS.cumsum(dim=1) - ends_BS
