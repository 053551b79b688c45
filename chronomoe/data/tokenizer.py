"""The tokenizer: a byte-level BPE trained on the training split, or one that exists.

Byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): the alphabet is the 256
bytes, so every text can be written and decoding gives it back exactly. `<|endoftext|>` closes each document.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from chronomoe.data.cache import file_signature, fingerprint
from chronomoe.data.hub import hub_access
from chronomoe.settings import InputError

END_OF_DOCUMENT = "<|endoftext|>"
MAX_TRAINING_CHARS = 32_000_000
"""A BPE is trained on about the first this many characters of the training split; more hardly changes its merges."""

PIECE_CHARS = 100_000
"""Longer texts are worked on in pieces of whole lines, so that they too run in parallel and in bounded memory."""


class LanguageTokenizer(NamedTuple):
    tokenizer: Tokenizer
    eos_token: str

    @property
    def eos_id(self) -> int:
        eos_id = self.tokenizer.token_to_id(self.eos_token)
        assert eos_id is not None  # checked when it was loaded
        return eos_id

    @property
    def vocab_size(self) -> int:
        """The smallest size of an embedding that has a row for every id; ids may have gaps."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def tokenizer_signature(name: str | None, vocab_size: int) -> Any:
    """A JSON value that changes when `data.tokenizer` may give another tokenizer."""
    if name is None:
        return ["byte-level-bpe", vocab_size]
    folder = Path(name).expanduser()
    return [name, file_signature(sorted(folder.glob("tokenizer*.json"))) if folder.is_dir() else []]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> LanguageTokenizer:
    """A byte-level BPE with at most `vocab_size` entries; a short text yields fewer merges and a smaller one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(_first(texts, MAX_TRAINING_CHARS), trainer)
    return LanguageTokenizer(tokenizer, END_OF_DOCUMENT)


def load_tokenizer(name: str, key: str = "data.tokenizer") -> LanguageTokenizer:
    """The tokenizer in a folder, or of a hub repository, that holds a `tokenizer.json`; `key` is the setting that
    named it.

    Its end-of-document token is the `eos_token` of the `tokenizer_config.json` beside it, else `<|endoftext|>`.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _downloaded(name, key)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception for a missing and for a broken file
        raise InputError(f"{key}={name}: tokenizer.json cannot be read ({error}): give its folder") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    eos_token = config.get("eos_token") or END_OF_DOCUMENT
    if isinstance(eos_token, dict):
        eos_token = eos_token["content"]
    if tokenizer.token_to_id(eos_token) is None:
        raise InputError(f"{key}={name}: no entry {eos_token!r}: name its eos_token in tokenizer_config.json")
    return LanguageTokenizer(tokenizer, eos_token)


def save_tokenizer(language: LanguageTokenizer, folder: Path) -> None:
    """Write a folder that `data.tokenizer=` and transformers' `AutoTokenizer` load."""
    folder.mkdir(parents=True, exist_ok=True)
    language.tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": language.eos_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenizer_content(language: LanguageTokenizer) -> str:
    """A hash of what the tokenizer does, whatever folder it came from."""
    return fingerprint([language.tokenizer.to_str(), language.eos_token])


def encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Token ids of each text, in parallel; the end-of-document token written out in a text is only text."""
    # Asking for parallelism keeps the library from warning (and switching it off) when a loader process is forked
    # later; those never tokenise, so the deadlock it warns of cannot happen.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    tokenizer.encode_special_tokens = True
    return (encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def pieces(text: str) -> Iterator[str]:
    """`text` in one or more pieces of at most `PIECE_CHARS`, cut at line ends where there are any."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        end = text.rfind("\n", start, start + PIECE_CHARS) + 1 or start + PIECE_CHARS
        yield text[start:end]
        start = end
    yield text[start:]


def check_vocabulary(tokenizer_size: int, model_vocab_size: int) -> None:
    if tokenizer_size > model_vocab_size:
        raise InputError(
            f"model.vocab_size={model_vocab_size} has no room for the tokenizer's {tokenizer_size} entries: "
            f"set model.vocab_size={-(-tokenizer_size // 64) * 64}"
        )


def _downloaded(name: str, key: str) -> Path:
    """The local folder of a hub repository's tokenizer files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with hub_access():
            path = Path(hf_hub_download(name, "tokenizer.json"))
            with suppress(EntryNotFoundError):  # then the default end-of-document token is tried
                hf_hub_download(name, "tokenizer_config.json")
        return path.parent
    except Exception as error:  # the client and its transport share no base class
        fault = str(error).strip().splitlines()[0]
        raise InputError(
            f"{key}={name} is no folder, and not to be had from the hub ({fault}): give a folder"
        ) from error


def _first(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    for text in texts:
        for piece in pieces(text):
            if max_chars <= 0:
                return
            yield piece
            max_chars -= len(piece)
