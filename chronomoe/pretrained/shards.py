"""The weights in a Hugging Face folder: one safetensors file, or several and an index, read a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chronomoe.settings import InputError

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_object(path: Path, key: str = "source") -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a missing or broken file, naming the setting `key`."""
    if not path.is_file():
        raise InputError(f"{key}={path.parent} holds no {path.name}: give a folder with a whole model")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{key}={path.parent}: {path.name} is broken: fetch it again")
    return content


class Shards(Mapping[str, Tensor]):
    """name -> tensor, read from the disk each time it is asked for; names and shapes are known from the headers.

    Raises InputError for files that are missing or truncated, before any tensor is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_read: Callable[[], object] = lambda: None
        """Called for every tensor that is read."""
        self.of_name: dict[str, Any] = {}
        for file, names in self.files().items():
            opened = self.open(file)
            held = set(opened.keys())
            lacking = sorted(names - held) if names is not None else []
            if lacking:
                raise InputError(f"source={folder}: {file} lacks {lacking[0]}, which the index says it holds")
            self.of_name |= dict.fromkeys(held if names is None else names, opened)

    def files(self) -> dict[str, set[str] | None]:
        """File -> the tensors that the index says it holds; None: all it has."""
        if not (self.folder / INDEX).is_file():
            if (self.folder / ONE_FILE).is_file():
                return {ONE_FILE: None}
            pickled = "; pickled weights are not read" if any(self.folder.glob("*.bin")) else ""
            raise InputError(f"source={self.folder} holds no {ONE_FILE} and no {INDEX}{pickled}: give a whole model")
        listed = read_object(self.folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(f"source={self.folder}: {INDEX} has no weight_map: fetch it again")
        return {file: {name for name, at in listed.items() if at == file} for file in sorted(set(listed.values()))}

    def open(self, file: str) -> Any:
        from safetensors import SafetensorError, safe_open

        path = self.folder / file
        if Path(file).name != file or not path.is_file():
            raise InputError(f"source={self.folder} lacks the shard {file}: fetch it again")
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError):
            raise InputError(f"source={self.folder}: {file} is truncated or broken: fetch it again") from None

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.of_name[name].get_tensor(name)
        self.on_read()
        return tensor.clone()  # what is mapped would drag its whole file along wherever it is saved

    def __iter__(self) -> Iterator[str]:
        return iter(self.of_name)

    def __len__(self) -> int:
        return len(self.of_name)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self.of_name[name].get_slice(name).get_shape())

    @property
    def num_bytes(self) -> int:
        return sum((self.folder / file).stat().st_size for file in self.files())


def check_shapes(shards: Shards, expected: Mapping[str, torch.Size]) -> None:
    """Raise InputError unless the folder holds exactly these, naming the first that differs."""
    for name in sorted(expected.keys() | shards.keys()):
        if name not in shards:
            raise InputError(f"source={shards.folder} lacks {name}, which its config.json calls for: fetch it again")
        if name not in expected:
            raise InputError(
                f"source={shards.folder} holds {name}, for which the model of its config.json has no place"
            )
        if shards.shape(name) != expected[name]:
            raise InputError(
                f"source={shards.folder}: {name} is {list(shards.shape(name))}, and config.json calls for "
                f"{list(expected[name])}"
            )
