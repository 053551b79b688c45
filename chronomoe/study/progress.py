"""A bar on the terminal for what takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

Element = TypeVar("Element")


def progress(elements: Sequence[Element], verb: str, unit: str) -> Iterable[Element]:
    """The elements, counted on stderr while they are gone through."""
    from tqdm import tqdm

    return tqdm(elements, desc=verb, unit=unit, delay=2, disable=None, leave=False)
