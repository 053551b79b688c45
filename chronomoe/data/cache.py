"""Folders named by what they hold, written whole or not at all.

    <cache_dir>/corpora/<content hash>/    a packed corpus; two sources with the same text share one folder
    <cache_dir>/requests/<request hash>    one line: the content hash that a request led to the last time

A request is cheap to hash (settings, and each source file's size and time of change), so a second run finds its corpus
without opening a source. A lock lets one process pack while the others (ranks, sweep points) wait and then find it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chronomoe.settings import InputError

UNFINISHED = ".unfinished-"


def fingerprint(value: Any) -> str:
    """80 bits, as 20 hexadecimal digits, of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def file_signature(paths: Iterable[Path]) -> list[list[Any]]:
    """Absolute path, size and time of change of each file: differs when a file does, without opening it."""
    stats = ((path, path.stat()) for path in paths)
    return [[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


class CorpusCache:
    def __init__(self, cache_dir: str) -> None:
        self.root = Path(cache_dir).expanduser()

    def folder(self, content_hash: str) -> Path:
        return self.root / "corpora" / content_hash

    def find(self, request: str) -> Path | None:
        """The folder the request led to before, if it is still there."""
        try:
            folder = self.folder((self.root / "requests" / request).read_text())
        except OSError:
            return None
        return folder if folder.is_dir() else None

    def remember(self, request: str, content_hash: str) -> None:
        target = self.root / "requests" / request
        unfinished = target.with_name(UNFINISHED + request)
        unfinished.write_text(content_hash)
        os.replace(unfinished, target)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the only right to write to the cache; faults of the disk become one line that names the key."""
        from filelock import FileLock

        try:
            for name in ("corpora", "requests"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / "lock"):
                for leftover in (self.root / "corpora").glob(UNFINISHED + "*"):  # of a process that was killed
                    shutil.rmtree(leftover, ignore_errors=True)
                yield
        except OSError as error:
            raise InputError(
                f"data.cache_dir={self.root}: {error.strerror or error}: free space there or choose another folder"
            ) from error

    @contextmanager
    def new_folder(self, content_hash: str) -> Iterator[Path]:
        """An empty folder to fill; it gets its name when all is written, and disappears on any error or interrupt."""
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self.root / "corpora"))
        try:
            yield unfinished
            os.replace(unfinished, self.folder(content_hash))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
