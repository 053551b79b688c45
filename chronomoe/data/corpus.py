"""Which documents a run reads, and which of them it never trains on.

A source is two functions: `signature`, cheap, and `documents`, lazy. A new source is one file with both, one line in
`SOURCES` and one YAML in `configs/data/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from chronomoe.data import domains, huggingface, stdlib, text
from chronomoe.data.document import Document
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError


class Source(NamedTuple):
    signature: Callable[[DataSettings], Any]
    """A JSON value that changes when the documents may have changed, without reading them."""
    documents: Callable[[DataSettings], Iterator[Document]]


SOURCES = {
    "stdlib": Source(stdlib.signature, stdlib.documents),
    "text": Source(text.signature, text.documents),
    "huggingface": Source(huggingface.signature, huggingface.documents),
    "domains": Source(domains.signature, domains.documents),
}


def read_documents(settings: DataSettings) -> list[Document]:
    """The first `max_documents` documents that are neither blank nor a copy of an earlier one, held in memory."""
    found = (document for document in SOURCES[settings.source].documents(settings) if document.text.strip())
    documents = list(islice(_without_copies(found), settings.max_documents))
    if not documents:
        raise InputError(f"data.source={settings.source}: the documents hold no text: give other files or records")
    return documents


def hold_out(documents: list[Document], val_fraction: float) -> tuple[list[Document], list[Document]]:
    """Training and validation documents, both in the given order.

    Documents of one origin stay together. The choice depends on the texts alone, never on a seed, a path or an order:
    origins are sorted by domain and then by hash, and every 1/val_fraction-th is held out, so that each domain keeps
    its share. A corpus of one document is first cut in two, at the blank line or line end before its last part.
    """
    if len(documents) == 1:
        return _cut_in_two(documents[0], val_fraction)
    origins: dict[str, list[Document]] = {}
    for document in documents:
        origins.setdefault(document.origin, []).append(document)
    if len(origins) < 2:
        raise InputError(f"data.max_documents={len(documents)} reads one file only, none is left to validate: raise it")

    ordered = sorted(origins, key=lambda origin: (origins[origin][0].domain, _digest(*origins[origin])))
    num_val = max(1, round(val_fraction * len(ordered)))
    held_out = {ordered[(2 * i + 1) * len(ordered) // (2 * num_val)] for i in range(num_val)}
    train = [document for document in documents if document.origin not in held_out]
    val = [document for document in documents if document.origin in held_out]
    return train, val


def _cut_in_two(document: Document, val_fraction: float) -> tuple[list[Document], list[Document]]:
    text = document.text
    target = round(len(text) * (1 - val_fraction))
    ends = (text.rfind(mark, 0, target) + len(mark) for mark in ("\n\n", "\n", " "))
    cut = next((end for end in ends if end > target // 2), target)
    return [document._replace(text=text[:cut])], [document._replace(text=text[cut:])]


def _without_copies(documents: Iterator[Document]) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in documents:
        digest = _digest(document)
        if digest not in seen:
            seen.add(digest)
            yield document


def documents_hash(documents: list[Document]) -> str:
    """A hash of the texts, their borders, their domains and their order, but not of where they came from."""
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(_digest(document) + document.domain.encode() + b"\0")
    return hashed.hexdigest()


def _digest(*documents: Document) -> bytes:
    hashed = hashlib.sha256()
    for document in documents:
        hashed.update(document.text.encode())
    return hashed.digest()
