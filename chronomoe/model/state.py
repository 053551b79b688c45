"""What a model remembers of the tokens it has read: keys and values of every attending block, the recurrent state of
every RWKV block, and how many tokens there were. A text continued from a state goes on as if it had been read whole.

A forward pass extends the state it is given in place; `clone` first to keep a point to come back to. Rows of the batch
can be selected, and a state moved to another device, written to disk and read back: it holds tensors and plain values.

Axes: B batch, S new tokens, C tokens kept, G key-value heads, A head width, D model dim, H RWKV heads, N their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chronomoe.settings import InputError


class KeyValueCache:
    """Keys and values of one attending block: of all past tokens, in a buffer that doubles when it is full, or of the
    last ones that a window lets the next token see."""

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        like: Tensor,
        *,
        capacity: int,
        window: int | None,
        value_dim: int | None = None,
    ) -> None:
        """`value_dim`: width of the values where it is not that of the keys."""
        self.window = window
        room = capacity if window is None else 0
        self.keys_BGCA = like.new_zeros(batch, num_kv_heads, room, head_dim)
        self.values_BGCA = like.new_zeros(batch, num_kv_heads, room, value_dim or head_dim)
        self.length = 0
        """Tokens it holds."""

    def append(self, keys_BGSA: Tensor, values_BGSA: Tensor) -> tuple[Tensor, Tensor]:
        """Store S new tokens; returns what was held with the new ones behind it."""
        if self.window is not None:
            keys = torch.cat((self.keys_BGCA, keys_BGSA), dim=2)
            values = torch.cat((self.values_BGCA, values_BGSA), dim=2)
            seen_next = self.window - 1  # beside the next token itself
            first = max(0, keys.shape[2] - seen_next)
            self.keys_BGCA, self.values_BGCA = keys[:, :, first:].clone(), values[:, :, first:].clone()
            self.length = self.keys_BGCA.shape[2]
            return keys, values
        start, end, room = self.length, self.length + keys_BGSA.shape[2], self.keys_BGCA.shape[2]
        frozen = self.keys_BGCA.is_inference() and not torch.is_inference_mode_enabled()
        if end > room or frozen:  # what inference mode made can be written to nowhere else
            self.reserve(max(end, 2 * room) if end > room else room)
        self.keys_BGCA[:, :, start:end] = keys_BGSA
        self.values_BGCA[:, :, start:end] = values_BGSA
        self.length = end
        return self.keys_BGCA.narrow(2, 0, end), self.values_BGCA.narrow(2, 0, end)

    def reserve(self, capacity: int) -> None:
        for name in ("keys_BGCA", "values_BGCA"):
            held = getattr(self, name)
            larger = held.new_zeros(*held.shape[:2], capacity, held.shape[3])
            larger[:, :, : self.length] = held[:, :, : self.length]
            setattr(self, name, larger)

    def tensors(self) -> dict[str, Tensor]:
        """What is held, without the room behind it."""
        return {
            "keys_BGCA": self.keys_BGCA.narrow(2, 0, self.length),
            "values_BGCA": self.values_BGCA.narrow(2, 0, self.length),
        }

    def shapes(self, batch: int, position: int) -> dict[str, tuple[int, ...]]:
        """Of what is held once so many tokens were read."""
        held = position if self.window is None else min(position, self.window - 1)
        return {name: (batch, t.shape[1], held, t.shape[3]) for name, t in self.tensors().items()}

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.keys_BGCA, self.values_BGCA = tensors["keys_BGCA"], tensors["values_BGCA"]
        self.length = self.keys_BGCA.shape[2]


class RecurrentState:
    """Of one RWKV block: its size does not depend on how many tokens there were."""

    def __init__(self, batch: int, dim: int, num_heads: int, like: Tensor) -> None:
        width = dim // num_heads
        self.time_shift_BD = like.new_zeros(batch, dim)
        """The last token, as time mixing saw it."""
        self.wkv_BHNN = torch.zeros(batch, num_heads, width, width, device=like.device, dtype=state_precision(like))
        self.channel_shift_BD = like.new_zeros(batch, dim)
        """The last token, as its experts saw it."""

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("time_shift_BD", "wkv_BHNN", "channel_shift_BD")}

    def shapes(self, batch: int, position: int) -> dict[str, tuple[int, ...]]:
        return {name: (batch, *t.shape[1:]) for name, t in self.tensors().items()}

    def replace(self, tensors: dict[str, Tensor]) -> None:
        for name in self.tensors():
            setattr(self, name, tensors[name])


def state_precision(like: Tensor) -> torch.dtype:
    """fp32 whatever the activations are, or fp64 if they are."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


class StreamState:
    def __init__(self, layers: list[KeyValueCache | RecurrentState]) -> None:
        self.layers = layers
        self.position = 0
        """Tokens read so far."""
        self.rotation: Any = None
        """Rotary angles of the first positions, if somebody formed them beforehand."""

    @property
    def context(self) -> int:
        """Past tokens that attention can still see."""
        return next((layer.length for layer in self.layers if isinstance(layer, KeyValueCache)), 0)

    @property
    def num_bytes(self) -> int:
        """Of what is remembered; room reserved for more is not counted."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors().values())

    def _map(self, change: Callable[[Tensor], Tensor]) -> StreamState:
        """A new state of changed tensors."""
        layers: list[KeyValueCache | RecurrentState] = []
        for layer in self.layers:
            copy = object.__new__(type(layer))
            copy.__dict__.update(layer.__dict__)
            copy.replace({name: change(tensor) for name, tensor in layer.tensors().items()})
            layers.append(copy)
        state = StreamState(layers)
        state.position, state.rotation = self.position, self.rotation  # a table, which nobody writes to
        return state

    def clone(self) -> StreamState:
        """A copy that shares nothing: to come back to, or to go on from in two ways."""
        return self._map(Tensor.clone)

    def detach(self) -> StreamState:
        """The same values without their history, for training on a text piece by piece."""
        return self._map(lambda tensor: tensor.detach().clone())

    def select(self, rows: Tensor) -> StreamState:
        """The given rows of the batch, in their order; a row may be taken twice."""
        return self._map(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def to(self, device: torch.device | str) -> StreamState:
        state = self._map(lambda tensor: tensor.to(device, copy=True))
        if self.rotation is not None:
            state.rotation = type(self.rotation)(*(table.to(device) for table in self.rotation))
        return state

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values: `torch.save` it, and load it with `weights_only=True`."""
        layers = [  # copies: a part of a buffer would be written with all of it
            {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in layer.tensors().items()}
            for layer in self.layers
        ]
        return {"position": self.position, "layers": layers}

    def load_dict(self, saved: Any) -> None:
        """Take over a saved state of the same model; this one, fresh, says which shapes fit. Raises InputError, and is
        then as it was before."""
        position, layers = (saved.get("position"), saved.get("layers")) if isinstance(saved, dict) else (None, None)
        if not isinstance(position, int) or position < 0 or not isinstance(layers, list):
            raise InputError("this is no state of a model: it has no position, or no blocks")
        if len(layers) != len(self.layers):
            raise InputError(f"the state is of {len(layers)} blocks and the model has {len(self.layers)}")
        batch = (*shape_of(layers[0], next(iter(self.layers[0].tensors()))), 0)[0]
        for number, (layer, tensors) in enumerate(zip(self.layers, layers, strict=True)):
            shapes = layer.shapes(batch, position)
            if not isinstance(tensors, dict) or shapes != {name: shape_of(tensors, name) for name in tensors}:
                raise InputError(
                    f"the state's block {number} is broken or of another model: use the one it was saved from"
                )
        for layer, tensors in zip(self.layers, layers, strict=True):
            mine = layer.tensors()
            layer.replace({name: tensor.to(mine[name], copy=True) for name, tensor in tensors.items()})
        self.position = position


def shape_of(tensors: Any, name: str) -> tuple[int, ...]:
    """Of the tensor of this name, empty where none of real numbers is found."""
    tensor = tensors.get(name) if isinstance(tensors, dict) else None
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and tensor.is_floating_point() else ()
