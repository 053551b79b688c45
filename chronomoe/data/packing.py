"""A corpus as two rows of token ids on disk, memory-mapped: each document followed by the end-of-document token.

    train.tokens  val.tokens    raw little-endian uint16, or uint32 for vocabularies above 65,536
    train.npz  val.npz          where each document starts, and its domain
    unigram_counts.npy          how often each token id occurs in the training split
    tokenizer/  corpus.json     the tokenizer, and what the folder holds; written last

`prepare_corpus` makes such a folder once and afterwards only opens it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from chronomoe.data.cache import CorpusCache, fingerprint
from chronomoe.data.corpus import SOURCES, documents_hash, hold_out, read_documents
from chronomoe.data.document import Document
from chronomoe.data.sampler import num_blocks
from chronomoe.data.settings import DataSettings
from chronomoe.data.tokenizer import (
    LanguageTokenizer,
    check_vocabulary,
    load_tokenizer,
    pieces,
    save_tokenizer,
    tokenizer_content,
    tokenizer_signature,
    train_tokenizer,
)
from chronomoe.data.words import choose_encoder
from chronomoe.settings import InputError

FORMAT = 1
"""Raise it when the same documents would be packed differently: older folders are then left alone and not found."""
BATCH_CHARS = 1_000_000
"""Text tokenised at once, in parallel; more takes memory and gains nothing."""


class DocumentIndex(NamedTuple):
    starts: np.ndarray
    """int64 [documents]: offset of each document's first token."""
    domains: np.ndarray
    """uint8 [documents]: index into `PackedCorpus.domains`."""


class TokenLabels(NamedTuple):
    documents: np.ndarray
    """int64, shaped as the offsets: number of the document in its split."""
    domains: np.ndarray
    """int64, shaped as the offsets: index into `PackedCorpus.domains`."""


class PackedCorpus:
    """Read-only view of one packed folder. Opening maps the files and reads none of the tokens."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        facts = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
        self.content_hash: str = facts["content_hash"]
        self.vocab_size: int = facts["vocab_size"]
        self.eos_id: int = facts["eos_id"]
        self.domains: list[str] = facts["domains"]
        self.train_tokens = np.memmap(directory / "train.tokens", dtype=facts["dtype"], mode="r")
        self.val_tokens = np.memmap(directory / "val.tokens", dtype=facts["dtype"], mode="r")

    def __reduce__(self) -> tuple[type[PackedCorpus], tuple[Path]]:
        return PackedCorpus, (self.directory,)  # a loader process maps the files again instead of receiving a copy

    @property
    def train_documents(self) -> DocumentIndex:
        return self._documents("train")

    @property
    def val_documents(self) -> DocumentIndex:
        return self._documents("val")

    def _documents(self, split: str) -> DocumentIndex:
        with np.load(self.directory / f"{split}.npz") as arrays:
            return DocumentIndex(arrays["starts"], arrays["domains"])

    def label_tokens(self, split: Literal["train", "val"], offsets: np.ndarray) -> TokenLabels:
        """Document and domain of the tokens at `offsets`; block b of S tokens is at b * S + np.arange(S).

        The end-of-document token belongs to the document it closes.
        """
        starts, domains = self._documents(split)
        documents = np.searchsorted(starts, offsets, side="right") - 1
        return TokenLabels(documents, domains[documents].astype(np.int64))

    def unigram_log_probs(self) -> np.ndarray:
        """float32 [vocab]: ln((count + 1) / (tokens + vocab)) over the training split, the context-free baseline."""
        counts = np.load(self.directory / "unigram_counts.npy").astype(np.float64)
        return np.log((counts + 1) / (counts.sum() + self.vocab_size)).astype(np.float32)

    def order(self, settings: DataSettings, seed: int) -> dict[str, Any]:
        """Setting -> value of everything that decides which tokens are read when, apart from the step."""
        order = {"seed": seed, "data.batch_size": settings.batch_size, "data.seq_len": settings.seq_len}
        return order | {"data (content hash)": self.content_hash}

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(str(self.directory / "tokenizer")).tokenizer


def prepare_corpus(settings: DataSettings, *, model_vocab_size: int, quiet: bool = False) -> PackedCorpus:
    """The packed corpus of `settings`, made now or found in the cache; says which on standard error
    (when `quiet`, only what it made).

    Raises InputError if the documents cannot be read, the model's vocabulary is too small for the tokenizer, or the
    splits are too short for one optimizer step or one evaluation.
    """
    started = time.perf_counter()
    cache = CorpusCache(settings.cache_dir)
    request = fingerprint(
        [
            FORMAT,
            [settings.source, SOURCES[settings.source].signature(settings)],
            tokenizer_signature(settings.tokenizer, settings.vocab_size),
            [settings.val_fraction, settings.max_documents],
        ]
    )
    folder = cache.find(request)
    verb = "reused"
    if folder is None:
        if settings.tokenizer is None:
            check_vocabulary(settings.vocab_size, model_vocab_size)
        with cache.writing():
            folder = cache.find(request)  # another process may have packed it while this one waited
            if folder is None:
                folder = _pack(settings, cache, request, model_vocab_size)
                verb = "prepared"

    corpus = PackedCorpus(folder)
    check_vocabulary(corpus.vocab_size, model_vocab_size)
    check_length(corpus, settings)
    if verb == "prepared" or not quiet:
        _say(
            f"data: {verb} {settings.source}: {len(corpus.train_tokens):,} training and {len(corpus.val_tokens):,} "
            f"validation tokens, vocabulary {corpus.vocab_size:,}, {time.perf_counter() - started:.1f} s, {folder}"
        )
    return corpus


def check_length(corpus: PackedCorpus, settings: DataSettings) -> None:
    """Raise InputError unless there is a full batch to train on and a full evaluation to validate on."""
    train_blocks = num_blocks(len(corpus.train_tokens), settings.seq_len)
    if train_blocks < settings.batch_size:
        raise InputError(
            f"data.batch_size={settings.batch_size}: the {len(corpus.train_tokens):,} training tokens hold "
            f"{train_blocks} sequences of data.seq_len={settings.seq_len}: give more text or smaller values"
        )
    val_blocks = num_blocks(len(corpus.val_tokens), settings.seq_len)
    if val_blocks < settings.val_sequences:
        raise InputError(
            f"data.val_sequences={settings.val_sequences}: the {len(corpus.val_tokens):,} validation tokens hold "
            f"{val_blocks} sequences of data.seq_len={settings.seq_len}: "
            f"set data.val_sequences={max(1, val_blocks)} or a larger data.val_fraction"
        )


def _pack(settings: DataSettings, cache: CorpusCache, request: str, model_vocab_size: int) -> Path:
    language = load_tokenizer(settings.tokenizer) if settings.tokenizer else None
    if language is not None:
        check_vocabulary(language.vocab_size, model_vocab_size)
    documents = read_documents(settings)
    splits = dict(zip(("train", "val"), hold_out(documents, settings.val_fraction), strict=True))

    spelling = tokenizer_content(language) if language else ["byte-level-bpe", settings.vocab_size]
    content_hash = fingerprint([FORMAT, spelling, [documents_hash(split) for split in splits.values()]])
    target = cache.folder(content_hash)
    if not target.is_dir():
        language = language or train_tokenizer((document.text for document in splits["train"]), settings.vocab_size)
        with cache.new_folder(content_hash) as folder:
            write_corpus(folder, splits, language, content_hash)
    cache.remember(request, content_hash)
    return target


def write_corpus(
    folder: Path, splits: dict[str, list[Document]], language: LanguageTokenizer, content_hash: str
) -> None:
    """Fill the empty `folder` with the packed "train" and "val" documents of `splits`."""
    domains = sorted({document.domain for split in splits.values() for document in split})
    dtype = "<u2" if language.vocab_size <= 2**16 else "<u4"
    counts = np.zeros(language.vocab_size, dtype=np.int64)
    encoder, end = choose_encoder(language.tokenizer), np.array([language.eos_id], dtype=np.uint32)
    total = sum(len(document.text) for split in splits.values() for document in split)
    with tqdm(
        total=total, desc="data: tokenising", unit="char", unit_scale=True, disable=None, leave=False
    ) as progress:
        for name, documents in splits.items():
            lengths = np.zeros(len(documents), dtype=np.int64)
            with open(folder / f"{name}.tokens", "wb") as file:
                for batch in _batches(documents):
                    parts: list[np.ndarray] = []
                    for piece, ids in zip(batch, encoder([piece.text for piece in batch]), strict=True):
                        parts += [ids, end] if piece.is_last else [ids]
                        lengths[piece.document] += len(ids) + piece.is_last
                    row = np.concatenate(parts).astype(dtype)
                    row.tofile(file)
                    if name == "train":
                        counts += np.bincount(row, minlength=len(counts))
                    progress.update(sum(len(piece.text) for piece in batch))
            labels = np.array([domains.index(document.domain) for document in documents], dtype=np.uint8)
            np.savez(folder / f"{name}.npz", starts=np.cumsum(lengths) - lengths, domains=labels)

    np.save(folder / "unigram_counts.npy", counts)
    save_tokenizer(language, folder / "tokenizer")
    facts = {
        "content_hash": content_hash,
        "vocab_size": language.vocab_size,
        "eos_id": language.eos_id,
        "dtype": dtype,
        "domains": domains,
        "num_documents": {name: len(documents) for name, documents in splits.items()},
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


class Piece(NamedTuple):
    document: int
    text: str
    is_last: bool


def _batches(documents: list[Document]) -> Iterator[list[Piece]]:
    """The pieces of all documents in order, in batches of about `BATCH_CHARS`."""
    batch: list[Piece] = []
    chars = 0
    for number, document in enumerate(documents):
        *firsts, last = pieces(document.text)
        for piece in [*(Piece(number, text, False) for text in firsts), Piece(number, last, True)]:
            batch.append(piece)
            chars += len(piece.text)
            if chars >= BATCH_CHARS:
                yield batch
                batch, chars = [], 0
    if batch:
        yield batch


def _say(line: str) -> None:
    if int(os.environ.get("LOCAL_RANK", 0)):
        return  # one process of a run speaks; Lightning would tell, but takes three seconds to import
    print(line, file=sys.stderr)
