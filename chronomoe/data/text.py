"""Documents from the user's own files: `data=text data.path=<file, folder or glob>`.

A .txt, .md or .py file is one document; each line of a .jsonl file is one, its text in the field `data.text_field`.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chronomoe.data.cache import file_signature
from chronomoe.data.document import Document
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError

DOMAINS = {".txt": "prose", ".md": "prose", ".py": "code", ".jsonl": "prose"}
SUFFIXES = ", ".join(DOMAINS)


def signature(settings: DataSettings) -> Any:
    """Changes when a file is added, removed or written to. A wrong `data.path` is found here, before any reading."""
    return [settings.text_field, file_signature(find_files(settings.path))]


def documents(settings: DataSettings) -> Iterator[Document]:
    for path in find_files(settings.path):
        try:
            with open(path, encoding="utf-8-sig") as file:
                if path.suffix == ".jsonl":
                    yield from _records(path, file, settings.text_field)
                else:
                    yield Document(_checked(path, file.read()), DOMAINS[path.suffix], str(path))
        except UnicodeDecodeError:
            raise InputError(f"data.path: {path} is not UTF-8 text: convert it or leave it out") from None
        except OSError as error:
            raise InputError(f"data.path: {path} cannot be read ({error.strerror}): check its permissions") from None


def find_files(pattern: str | None) -> list[Path]:
    """The files `data.path` means, sorted: a file, a folder's readable files at any depth, or what a glob matches."""
    if not pattern:
        raise InputError("data.path is missing: data=text needs a file, a folder or a glob, data.path=my.txt")
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = [file for file in path.rglob("*") if not _hidden(file.relative_to(path)) and file.suffix in DOMAINS]
    elif path.exists():
        found = [path]
    else:
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not found:
            raise InputError(f"data.path={pattern}: no such file or folder, and no file matches it: check the path")
    files = sorted(file for file in found if file.is_file() and file.suffix in DOMAINS)
    if not files:
        raise InputError(f"data.path={pattern}: no file ends in {SUFFIXES}: rename or convert the files")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _records(path: Path, lines: Iterator[str], field: str) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"data.path: {where} is not JSON ({error.msg}): correct or delete the line") from None
        yield Document(_checked(where, text_of(record, field, where)), DOMAINS[".jsonl"], where)


def text_of(record: Any, field: str, where: str) -> str:
    """The text in `field` of a record; the error names the place and the fields that are there."""
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        fields = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}, not an object"
        raise InputError(f"data.text_field={field}: no such text in {where}: set it to a field there ({fields})")
    return text


def _checked(where: Path | str, text: str) -> str:
    if "\0" in text:
        raise InputError(f"data.path: {where} is binary (it holds NUL characters): leave it out")
    if any("\ud800" <= char <= "\udfff" for char in text if char > "\ud7ff"):
        raise InputError(f"data.path: {where} holds half of a surrogate pair: replace it")
    return text
