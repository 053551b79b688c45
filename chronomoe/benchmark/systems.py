"""What is compared: the systems by name, which of them are installed, and which the user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from chronomoe.settings import InputError


class System(NamedTuple):
    name: str
    """What it is called in tables; every file of this package that builds systems knows its own names."""
    adapter: str
    """The module of this package that builds it."""
    dtype: str
    """fp32, or bf16: autocast around the forward pass and the loss, weights in fp32."""
    control: bool | None = None
    """Whether controller and metrics run; None for a system that has none."""
    package: str = ""
    """What must be importable."""
    peer: bool = False
    """Somebody else's implementation, to which ours is compared."""
    same_function: bool = True
    """Whether equal weights must give equal logits."""

    @property
    def key(self) -> str:
        control = {None: "", True: "_on", False: "_off"}[self.control]
        return f"{self.name.replace(' ', '_')}_{self.dtype}{control}"


def every_system() -> list[System]:
    """In the order of the first repeat: what is compared with each other stands close together."""
    found = []
    for dtype in ("fp32", "bf16"):
        found += [
            System("chronomoe", "ours", dtype, control=True),
            System("chronomoe", "ours", dtype, control=False),
            System("transformers grouped_mm", "mixtral_peer", dtype, package="transformers", peer=True),
            System("transformers grouped_mm kept", "mixtral_peer", dtype, package="transformers"),
            System("transformers eager", "mixtral_peer", dtype, package="transformers", peer=True),
            System("litgpt", "litgpt_peer", dtype, package="litgpt", peer=True),
            System("st-moe", "st_moe_peer", dtype, package="st_moe_pytorch", peer=True, same_function=False),
            System("dense", "ours", dtype, same_function=False),
        ]
    return found


INSTALL = {
    "transformers": 'pip install -e ".[hf]"',
    "litgpt": "pip install litgpt",
    "st_moe_pytorch": "pip install st-moe-pytorch",
}


def installed(system: System) -> bool:
    return not system.package or find_spec(system.package) is not None


def choose(wanted: Sequence[str]) -> list[System]:
    """The systems whose key is one of `wanted` or begins with one of them and an underscore; all if there are none.

    What nobody asked for by name and is not installed is left out, except transformers, without which there is
    nothing to compare with. Raises InputError for an unknown or a missing system.
    """
    systems = every_system()
    for word in wanted:
        if not any(matches(system, word) for system in systems):
            raise InputError(f"systems={word} does not exist: there are {', '.join(s.key for s in systems)}")
    chosen = [s for s in systems if not wanted or any(matches(s, word) for word in wanted)]
    for system in chosen:
        if not installed(system) and (wanted or system.package == "transformers"):
            raise InputError(f"{system.key} needs {system.package}, which is not installed: {INSTALL[system.package]}")
    return [system for system in chosen if installed(system)]


def matches(system: System, word: str) -> bool:
    return system.key == word or system.key.startswith(word + "_")
