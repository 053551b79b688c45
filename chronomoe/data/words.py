r"""Token ids of a corpus, each distinct word encoded once: exact, and most words of a corpus are copies.

A word is a run of white space and the run of other characters behind it. The byte-level pre-tokenizer's pattern (GPT-2)
    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
matches nothing across the border in front of a white-space character that follows another one, and looks behind
nowhere; BPE works within its matches. So the ids of a text are those of its words, one after the other. Tokenizers of
other kinds encode whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from chronomoe.data.tokenizer import encode

SPACE = r"[^\S\x1c-\x1f]"  # Unicode's white space: Python counts four separators more, the pre-tokenizer does not
OTHER = r"[\S\x1c-\x1f]"
WORD = re.compile(f"{SPACE}*{OTHER}+|{SPACE}+")
INNER = re.compile(f"{SPACE}+{OTHER}+")
"""A word that may stand behind another one without changing either's ids."""

MAX_WORDS = 1_000_000
"""Words remembered, about 200 MB; with more, all are forgotten and learned anew."""
JOINED_WORDS = 1_000
"""New words are encoded so many in one text: fewer waste the library's time on each text, more its parallelism."""

Encoder = Callable[[list[str]], Iterable[np.ndarray]]
"""Token ids of each text, an integer array."""


def choose_encoder(tokenizer: Tokenizer) -> Encoder:
    return WordEncoder(tokenizer) if is_made_of_words(tokenizer) else TextEncoder(tokenizer)


def is_made_of_words(tokenizer: Tokenizer) -> bool:
    """Whether `tokenizer` is a plain byte-level BPE, as the ones trained here and GPT-2's."""
    before, model = tokenizer.pre_tokenizer, tokenizer.model
    return (
        isinstance(before, pre_tokenizers.ByteLevel)
        and before.use_regex
        and not before.add_prefix_space
        and tokenizer.normalizer is None
        and isinstance(model, models.BPE)
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and all(added.special for added in tokenizer.get_added_tokens_decoder().values())  # these are text here
        and set(pre_tokenizers.ByteLevel.alphabet()) <= tokenizer.get_vocab(with_added_tokens=False).keys()
    )


class TextEncoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> Iterator[np.ndarray]:
        return (np.array(ids, dtype=np.uint32) for ids in encode(self.tokenizer, texts))


class WordEncoder:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        self.token_bytes = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)  # a letter of a token is a byte
        self.token_bytes[list(vocabulary.values())] = [len(token) for token in vocabulary]
        self._forget()

    def _forget(self) -> None:
        self.numbers: dict[str, int] = {}
        self.ids = np.zeros(0, dtype=np.uint32)  # of all known words, by number, one after the other
        self.lengths = np.zeros(0, dtype=np.int64)

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        spelled = [WORD.findall(text) for text in texts]
        words = [word for text_words in spelled for word in text_words]
        self._learn(words)
        number = np.fromiter(map(self.numbers.__getitem__, words), dtype=np.int64, count=len(words))
        lengths, starts = self.lengths[number], (np.cumsum(self.lengths) - self.lengths)[number]
        ends = np.cumsum(lengths)
        ids = self.ids[np.arange(lengths.sum()) + np.repeat(starts - ends + lengths, lengths)]
        text_ends = np.cumsum([len(text_words) for text_words in spelled])
        return np.split(ids, np.append(0, ends)[text_ends[:-1]])

    def _learn(self, words: list[str]) -> None:
        if len(self.numbers) > MAX_WORDS:
            self._forget()
        new = [word for word in dict.fromkeys(words) if word not in self.numbers]
        inner = [word for word in new if INNER.fullmatch(word)]
        outer = [word for word in new if not INNER.fullmatch(word)]  # at the ends of texts
        ordered = outer + inner
        groups = [inner[start : start + JOINED_WORDS] for start in range(0, len(inner), JOINED_WORDS)]
        encoded = [np.array(ids, dtype=np.uint32) for ids in encode(self.tokenizer, [*outer, *map("".join, groups)])]
        self.numbers.update(zip(ordered, range(len(self.numbers), len(self.numbers) + len(ordered)), strict=True))
        ids = np.concatenate([*encoded, self.ids[:0]])
        # Bytes are neither lost nor added, so a word's tokens end where its bytes end.
        word_ends = np.cumsum([len(word.encode()) for word in ordered], dtype=np.int64)
        token_ends = np.searchsorted(np.cumsum(self.token_bytes[ids]), word_ends, side="left") + 1
        self.lengths = np.concatenate([self.lengths, np.diff(token_ends, prepend=0)])
        self.ids = np.concatenate([self.ids, ids])
