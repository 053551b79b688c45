"""What a setting is: a dataclass field with a meaning, a unit and a range, and the one error a bad setting raises.

Every room declares its settings as dataclasses whose fields are made with `setting`; `chronomoe.config` gathers them
into the schema of the whole project and checks every range in one walk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

MISSING: Any = "???"
"""OmegaConf's mark of a value that must be given; written out, so that an exported model needs no OmegaConf."""


class InputError(ValueError):
    """The user's input is wrong. The message is one line: the key or file, the fault, and the way out."""


class RunFailed(RuntimeError):
    """A run ended by itself for a known reason. The message is one line."""


class Stopped(BaseException):
    """The user stopped a run and its state is saved.

    No KeyboardInterrupt, which Lightning turns into exit code 1, and no Exception, after which a multirun would go on.
    """


def setting(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with an inclusive range `[low, high]` or a closed list of `choices`; no default: required."""
    metadata = {"low": low, "high": high, "choices": list(choices) if choices else None}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
