"""Sampling from a language model, one token at a time, with the state of what was read.

    p = softmax(logits / temperature), cut to the smallest set of tokens whose mass reaches top_p (arXiv 1904.09751)
Temperature 0 takes the most likely token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from chronomoe.model.state import StreamState


class Streaming(Protocol):
    """What generation needs of a model: `LanguageModel`, or a loaded one."""

    settings: Any
    """With `max_seq_len` and `longest_text`."""
    __call__: Any
    """(ids_BS, state=…) -> an object with `last_logits_BV`."""

    def new_state(self, batch: int, capacity: int = 0) -> StreamState: ...


def sample(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Draw one token id per row, int64 [B]."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probs_BV, ids_BV = (logits_BV.float() / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    mass_before_BV = probs_BV.cumsum(dim=-1) - probs_BV
    probs_BV = probs_BV.masked_fill(
        (mass_before_BV >= top_p) & (mass_before_BV > 0), 0.0
    )  # the most likely token always stays
    drawn_B1 = torch.multinomial(probs_BV, 1, generator=generator)
    return ids_BV.gather(-1, drawn_B1).squeeze(-1)


def generate(
    model: Streaming,
    prompt_BS: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    state: StreamState | None = None,
) -> Iterator[Tensor]:
    """Yield the next token ids, int64 [B], as soon as each is drawn; prompts of one batch have one length.

    A `state` is of the tokens before the prompt, which is then what it has not read yet; it is extended in place by the
    prompt and by every drawn token but the last.

    Raises, before anything is drawn, ValueError if all tokens together exceed the model's `max_seq_len` (which a model
    that attends through a window, or not at all, does not have), and InputError if its router has no rule for decoding.
    Put the model in eval mode first.
    """
    batch, length = prompt_BS.shape
    past = state.position if state else 0
    capacity = past + length + max_new_tokens
    if capacity > model.settings.longest_text:
        before = f"{past} tokens before + " if past else ""
        raise ValueError(
            f"{before}{length} prompt + {max_new_tokens} new tokens exceed max_seq_len={model.settings.max_seq_len}"
        )
    reading = model.new_state(batch, capacity) if state is None else state

    def draw() -> Iterator[Tensor]:
        ids_BS = prompt_BS
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                ids_B = sample(model(ids_BS, state=reading).last_logits_BV, temperature, top_p, generator)
                ids_BS = ids_B[:, None]
            yield ids_B.clone()  # outside, where a clone is a plain tensor that may be trained on

    return draw()
