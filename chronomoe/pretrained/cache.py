"""chronomoe's streaming state in the form in which transformers' attention reads and extends a cache.

The tensors live in the state (model/state.py), which is cloned, cut, saved and gone on from as that of our own models;
transformers sees a cache made for one forward, whose layers pass keys and values on.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from chronomoe.model.state import KeyValueCache, StreamState

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


class Held(NamedTuple):
    """What one layer keeps of a token. Heads and widths may be of compressed keys and values (DeepSeek)."""

    num_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    like: Tensor
    """Of the device and precision of the keys."""


def what_is_held(cache: Any) -> list[Held]:
    """Read off a cache that transformers itself made and filled."""
    return [
        Held(
            layer.keys.shape[1],
            layer.keys.shape[-1],
            layer.values.shape[-1],
            layer.sliding_window if getattr(layer, "is_sliding", False) else None,
            layer.keys.new_empty(0),
        )
        for layer in cache.layers
    ]


def empty_state(held: list[Held], batch: int, capacity: int) -> StreamState:
    return StreamState(
        [
            KeyValueCache(
                batch,
                layer.num_heads,
                layer.key_dim,
                layer.like,
                capacity=capacity,
                window=layer.window,
                value_dim=layer.value_dim,
            )
            for layer in held
        ]
    )


def as_cache(state: StreamState) -> Cache:
    """For one forward, which extends the state; who calls it moves `position`."""
    from transformers.cache_utils import Cache

    make = cache_layer()
    return Cache(layers=[make(layer, state.position) for layer in state.layers])


@cache
def cache_layer() -> Any:
    """The class of such a layer, once transformers is wanted at all."""
    from transformers.cache_utils import CacheLayerMixin

    class StateLayer(CacheLayerMixin):
        is_compileable = False
        supports_early_init = False

        def __init__(self, held: KeyValueCache, position: int) -> None:
            super().__init__()
            self.held, self.position = held, position
            self.is_sliding = held.window is not None
            self.sliding_window = held.window
            self.is_initialized = True

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Nothing to do: the state exists."""

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return self.held.append(key_states, value_states)

        def get_seq_length(self) -> int:
            return self.position

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.held.length + query_length, self.position - self.held.length

        def get_max_length(self) -> int:
            return -1

        get_max_cache_shape = get_max_length  # its name in earlier versions

    return StateLayer
