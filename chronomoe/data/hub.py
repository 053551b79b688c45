"""Asking the Hugging Face hub without waiting for it.

The client retries an unreachable hub for half a minute. One short question first tells whether it answers; if it does
not, both libraries work from their local caches, which also makes a cached data set load at once on a machine without
network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

TIMEOUT_SECONDS = 3


@contextmanager
def hub_access(*, needed: bool = True) -> Iterator[None]:
    """Inside, hub libraries are in their offline mode if the hub is `needed` but does not answer."""
    import huggingface_hub

    with ExitStack() as stack:
        if needed and not _hub_answers():
            stack.enter_context(patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True))
            try:
                import datasets

                stack.enter_context(patch.object(datasets.config, "HF_HUB_OFFLINE", True))
            except ImportError:
                pass  # a tokenizer needs the hub client only
        yield


def _hub_answers() -> bool:
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # whatever the transport raises, the answer is no
        return False
    return True
