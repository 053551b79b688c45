"""Sampling from a language model, one token at a time, with a key-value cache.

    p = softmax(logits / temperature), cut to the smallest set of tokens whose mass reaches top_p (arXiv 1904.09751)
Temperature 0 takes the most likely token.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from chronomoe.model.lm import LanguageModel


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
    model: LanguageModel,
    prompt_BS: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the next token ids, int64 [B], as soon as each is drawn; prompts of one batch have one length.

    Raises, before anything is drawn, ValueError if prompt and new tokens exceed the model's `max_seq_len`, and
    InputError if its router has no rule for decoding. Put the model in eval mode first.
    """
    batch, length = prompt_BS.shape
    capacity = length + max_new_tokens
    if capacity > model.settings.max_seq_len:
        raise ValueError(
            f"{length} prompt + {max_new_tokens} new tokens exceed max_seq_len={model.settings.max_seq_len}"
        )
    caches = model.new_caches(batch, capacity)

    def draw() -> Iterator[Tensor]:
        ids_BS = prompt_BS
        for _ in range(max_new_tokens):
            with torch.inference_mode():
                ids_B = sample(model(ids_BS, caches=caches).last_logits_BV, temperature, top_p, generator)
                ids_BS = ids_B[:, None]
            yield ids_B.clone()  # outside, where a clone is a plain tensor that may be trained on

    return draw()
