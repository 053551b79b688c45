"""A loaded transformers model that a controller can watch and steer as it does chronomoe's own.

    SteeredModel(base)(ids).logits_BSV == base(ids).logits,  bit for bit, while the field is neutral
It offers what `LanguageModel` offers: the sensor and the field (model/steerable.py), outputs with clean routings, and
streaming states; so the callback, every law, every routing metric and `generate` take either. Nothing of the base is
replaced: two forward hooks a layer see and change what passes (layers.py), and `detach` takes them away again.

| freeze | what learns by gradients |
|---|---|
| all | nothing; only the field moves, by the controller. The base stays in eval mode, without dropout or jitter |
| base | the routers' own weights |

Axes: B batch, S sequence, C context (past and present), D dim, V vocabulary, L MoE layers, E experts, T = B*S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from chronomoe.chrono.metrics.change import agreement
from chronomoe.model.router import wide
from chronomoe.model.settings import RouterSettings
from chronomoe.model.state import StreamState
from chronomoe.model.steerable import Steerable
from chronomoe.pretrained.cache import Held, as_cache, empty_state, what_is_held
from chronomoe.pretrained.families import find_family, find_routers
from chronomoe.pretrained.layers import Record, SteeredLayer, SwitchLayer, is_steered
from chronomoe.pretrained.output import PretrainedOutput, PretrainedSettings
from chronomoe.settings import InputError

ENOUGH = 0.999
"""Share of a router's selected slots that the family's rule must reproduce."""
LOOK_TOKENS = 64
"""Random tokens that a new model is looked at with."""


class SteeredModel(Steerable):
    """Looks at the base with a few random tokens first. Raises InputError for a model that is not of a supported
    class, or whose routers do not do what the table of families says."""

    def __init__(self, base: Any, *, actuation: str = "selection", freeze: str = "all") -> None:
        super().__init__()
        self.family = find_family(type(base).__name__)
        self.base = base
        routers = find_routers(base, self.family)
        if any(is_steered(router) for router, _ in routers):
            raise InputError(f"this {type(base).__name__} is steered already: detach it first")
        make = SteeredLayer if self.family.streams else SwitchLayer
        self._layers = [
            make(number, router, experts, self.family.rule(router), actuation == "logits")
            for number, (router, experts) in enumerate(routers)
        ]
        rule, config = self._layers[0].rule, base.config
        positions = getattr(config, "max_position_embeddings", None) or float("inf")
        self.settings = PretrainedSettings(
            vocab_size=config.vocab_size,
            dim=config.hidden_size,
            num_layers=config.num_hidden_layers,
            num_experts=routers[0][0].num_experts,
            num_moe_layers=len(routers),
            max_seq_len=positions,
            longest_text=positions,
        )
        kind = "mixtral" if self.family.streams else "switch"
        self.router_settings = RouterSettings(kind=kind, gate=rule.gate, top_k=rule.top_k)
        with self.device:
            self.add_field(len(routers), self.settings.num_experts)
        self._before = ([p.requires_grad for p in base.parameters()], [m.training for m in base.modules()])
        self._handles = [handle for layer in self._layers for handle in layer.hook(self)]
        self._held: list[Held] = []
        self.attach([])
        try:
            self.freeze(freeze)
            self.eval()
            self.agreement, self.fp32_agreement = self.look()
            """Shares of slots that the rule reproduces from logits in the model's precision, and in fp32."""
            if self.agreement < ENOUGH:
                raise InputError(
                    f"{type(base).__name__}: only {self.agreement:.1%} of the experts its routers choose follow from "
                    f"their logits by the rule of {self.family.name}: use a version of transformers this one knows"
                )
        except BaseException:
            self.detach()
            raise

    def routers(self) -> list[SteeredLayer]:
        return self._layers

    @property
    def embedding(self) -> Any:
        return self.base.get_input_embeddings()

    @property
    def device(self) -> torch.device:
        """Where token ids are read; accelerate knows it of an embedding that it offloads."""
        weight = self.embedding.weight
        return torch.device(self.embedding._hf_hook.execution_device) if weight.is_meta else weight.device

    def freeze(self, what: str) -> int:
        """`all`, or `base`, which leaves the routers to learn; returns how many parameters learn."""
        if what not in ("all", "base"):
            raise InputError(f"freeze={what}: use all (only the field moves) or base (the routers learn too)")
        self.frozen = what
        for parameter in self.base.parameters():
            parameter.requires_grad_(False)
        learning = [p for layer in self._layers for p in layer.router.parameters()] if what == "base" else []
        for parameter in learning:
            parameter.requires_grad_(True)
        self.train(self.training)
        return sum(parameter.numel() for parameter in learning)

    def train(self, mode: bool = True) -> Self:
        """Training mode counts; the base takes part in it only where it learns."""
        super().train(mode)
        if self.frozen == "all":
            self.base.eval()
        return self

    def detach(self) -> Any:
        """The base as it was: without hooks, its parameters and modules in the modes they were found in. What routers
        learnt meanwhile they keep."""
        for handle in self._handles:
            handle.remove()
        grads, modes = self._before
        for parameter, grad in zip(self.base.parameters(), grads, strict=True):
            parameter.requires_grad_(grad)
        for module, mode in zip(self.base.modules(), modes, strict=True):
            module.training = mode
        self._handles = []
        return self.base

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._held = [held._replace(like=fn(held.like)) for held in getattr(self, "_held", [])]
        return self

    def forward(
        self,
        input_ids_BS: Tensor,
        *,
        real_BC: Tensor | None = None,
        document_BS: Tensor | None = None,
        state: StreamState | None = None,
        source_ids_BS: Tensor | None = None,
    ) -> PretrainedOutput:
        """Logits of the next token at every position.

        real_BC: bool, False at padding, over past and present; padding is neither seen nor counted.
        state: of the tokens before these, which it is extended by in place; positions continue.
        source_ids_BS: what an encoder reads, for the families that have one; the routings are then the encoder's layers
        followed by the decoder's.
        Raises InputError for what the family cannot do.
        """
        if document_BS is not None:
            raise InputError("a pretrained model reads packed documents as one text: set model.document_mask=false")
        if not self._handles:
            raise InputError("this model was detached: wrap it in a SteeredModel again")
        if self.family.streams:
            real_T = None if real_BC is None else real_BC[:, -input_ids_BS.shape[1] :].flatten()
            hidden_BSD, record = self.recorded(real_T, lambda: self.decode(input_ids_BS, real_BC, state))
        elif source_ids_BS is None or real_BC is not None or state is not None:
            raise InputError(
                f"{self.family.name} is an encoder and a decoder: give what the encoder reads as source_ids_BS, both "
                "texts whole, without real_BC and state"
            )
        else:
            hidden_BSD, record = self.recorded(None, lambda: self.translate(input_ids_BS, source_ids_BS))
        if state is not None:
            state.position += input_ids_BS.shape[1]
        if record.readings:
            self.sensor_LEC += torch.stack([reading.to(self.sensor_LEC.device) for reading in record.readings])
        return PretrainedOutput(hidden_BSD, record.routings, self.base.get_output_embeddings())

    def recorded(self, real_T: Tensor | None, run: Callable[[], Tensor]) -> tuple[Tensor, Record]:
        """What `run` returns, and what the layers did meanwhile."""
        record = Record(real_T)
        for layer in self._layers:
            layer.record = record
        try:
            return run(), record
        finally:
            for layer in self._layers:
                layer.record = None

    def decode(self, input_ids_BS: Tensor, real_BC: Tensor | None, state: StreamState | None) -> Tensor:
        past = {} if state is None else {self.cache_key: as_cache(state)}
        hidden_BSD: Tensor = self.base.base_model(
            input_ids=input_ids_BS,
            attention_mask=None if real_BC is None else real_BC.long(),
            use_cache=state is not None,
            **past,
        ).last_hidden_state
        return hidden_BSD

    @property
    def cache_key(self) -> str:
        """What transformers calls a cache, which changed within its fifth version."""
        import inspect

        names = inspect.signature(type(self.base.base_model).forward).parameters
        return "cache" if "cache" in names else "past_key_values"

    def translate(self, input_ids_BS: Tensor, source_ids_BS: Tensor) -> Tensor:
        """The decoder's hidden states as the head reads them, which an encoder-decoder may scale before."""
        read: list[Tensor] = []
        handle = self.base.get_output_embeddings().register_forward_pre_hook(lambda head, args: read.append(args[0]))
        try:
            self.base(input_ids=source_ids_BS, decoder_input_ids=input_ids_BS, use_cache=False)
        finally:
            handle.remove()
        return read[0]

    def new_state(self, batch: int, capacity: int = 0) -> StreamState:
        """Nothing read yet, where and as precise as the layers are; with room for `capacity` tokens, and more when
        they come. Raises InputError for an encoder-decoder."""
        if not self.family.streams:
            raise InputError(f"{self.family.name} is an encoder and a decoder: generation by states is not supported")
        return empty_state(self._held, batch, capacity)

    @torch.no_grad()
    def look(self) -> tuple[float, float]:
        """Learn from a forward of random tokens what the layers keep in a cache, and how much of what the routers
        choose the rule reproduces: from logits in the model's precision, and from the clean ones."""
        length = int(min(LOOK_TOKENS, self.settings.longest_text))
        generator = torch.Generator().manual_seed(0)
        ids_BS = torch.randint(self.settings.vocab_size, (1, length), generator=generator)
        ids_BS = ids_BS.to(self.device)

        def read() -> Tensor:
            if not self.family.streams:
                return self.translate(ids_BS, ids_BS)
            seen = self.base.base_model(input_ids=ids_BS, use_cache=True)
            self._held = what_is_held(getattr(seen, self.cache_key))
            hidden_BSD: Tensor = seen.last_hidden_state
            return hidden_BSD

        record, shares = self.recorded(None, read)[1], []
        for layer, own, routing in zip(self._layers, record.own, record.routings, strict=True):
            for logits_TE in (own.logits_TE.to(wide(own.logits_TE)), routing.logits_TE):
                ids_TK = layer.chosen_without_a_field(logits_TE)
                shares.append(agreement(own.ids_TK, ids_TK, self.settings.num_experts))
        in_model, in_fp32 = torch.stack([share.cpu() for share in shares]).view(-1, 2).mean(dim=0).tolist()
        return in_model, in_fp32
