"""Documents from a Hugging Face data set: a hub name or a local folder, whole or streamed.

Local folders are data files (`load_dataset`) or what `Dataset.save_to_disk` wrote. Data sets whose records are lines
of a longer document are regrouped first (`REGROUPED`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chronomoe.data.cache import file_signature
from chronomoe.data.document import Document
from chronomoe.data.hub import hub_access
from chronomoe.data.settings import DataSettings
from chronomoe.data.text import text_of
from chronomoe.settings import InputError

ARTICLE_HEADING = re.compile(r" = [^=].* = \n?")  # " = Title = ", not " = = Section = = "


def signature(settings: DataSettings) -> Any:
    """Changes with the settings, and with the files of a local folder. A hub data set is taken to stay as it is."""
    if not settings.name:
        raise InputError("data.name is missing: data=huggingface needs a hub name or a folder, data.name=owner/name")
    if settings.streaming and settings.max_documents is None:
        raise InputError("data.streaming=true needs an end: set data.max_documents=10000")
    folder = Path(settings.name).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [settings.name, settings.subset, settings.split, settings.text_field, file_signature(files)]


def documents(settings: DataSettings) -> Iterator[Document]:
    assert settings.name is not None  # signature() has checked it
    name = settings.name.rstrip("/").rsplit("/", 1)[-1]
    texts: Iterator[str] = (
        text_of(record, settings.text_field, f"record {number} of data.name={settings.name}")
        for number, record in enumerate(_records(settings))
    )
    if name in REGROUPED:
        texts = REGROUPED[name](texts)
    for number, text in enumerate(texts):
        yield Document(text, settings.subset or name, f"{settings.name}:{number}")


def wikitext_articles(lines: Iterator[str]) -> Iterator[str]:
    """WikiText's lines regrouped into articles; an article starts at a heading of the first level."""
    article: list[str] = []
    for line in lines:
        if ARTICLE_HEADING.fullmatch(line) and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


REGROUPED: dict[str, Callable[[Iterator[str]], Iterator[str]]] = {"wikitext": wikitext_articles}
"""By the last part of the data set's name."""


def _records(settings: DataSettings) -> Iterator[Any]:
    """The records of the split. A fault while iterating (a stream may break) is reported like one while opening."""
    try:
        import datasets
    except ImportError:
        raise InputError('data.source=huggingface needs the datasets library: pip install -e ".[hf]"') from None

    assert settings.name is not None
    folder = Path(settings.name).expanduser()
    try:
        if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
            saved = datasets.load_from_disk(folder)
            dataset = saved[settings.split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            with hub_access(needed=not folder.is_dir()):
                dataset = datasets.load_dataset(
                    str(folder) if folder.is_dir() else settings.name,
                    settings.subset,
                    split=settings.split,
                    streaming=settings.streaming,
                )
        yield from dataset
    except Exception as error:  # the library, the hub client and the file readers share no base class
        fault = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"data.name={settings.name}: {fault}: check the network and data.name, data.subset, data.split, or use "
            "data=stdlib, which needs no network"
        ) from error
