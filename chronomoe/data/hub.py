"""Asking the Hugging Face hub without waiting for it.

The client retries an unreachable hub for half a minute. One short question first tells whether it answers; if it does
not, the libraries are held in their offline mode: what is cached loads at once, what is not fails at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

TIMEOUT_SECONDS = 3
OFFLINE_FLAGS = ("huggingface_hub.constants", "datasets.config")  # modules with a switch HF_HUB_OFFLINE


@contextmanager
def hub_access(*, needed: bool = True) -> Iterator[None]:
    """Inside, the hub libraries are in their offline mode if the hub is `needed` but does not answer."""
    if not needed or _hub_answers():
        yield
        return
    modules: list[Any] = []
    for name in OFFLINE_FLAGS:
        with suppress(ImportError):  # a tokenizer needs the hub client only
            modules.append(importlib.import_module(name))
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, flag in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = flag


def _hub_answers() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # whatever the transport raises, the answer is no
        return False
    return True
