"""Folders that are whole or not there: filled beside their place, then moved into it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chronomoe.settings import InputError, RunFailed


def check_vacant(target: Path, num_bytes: int, key: str) -> None:
    """Before anything is written: raise InputError, naming the setting `key`, where no folder of this size fits."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{key}={target} is there already: name a folder that is not, or remove it")
    there = next(parent for parent in target.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise InputError(
            f"{key}={target} needs {num_bytes / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free: make room, or "
            "choose another disk"
        )


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Inside, a folder to fill; afterwards it is `target`, or nothing is if anything was raised. Raises RunFailed if
    the disk refuses."""
    unfinished = target.absolute().with_name(f".{target.absolute().name}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.is_dir():
            target.rmdir()  # an empty one
        unfinished.rename(target)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunFailed(f"could not write {target}: {error.strerror}; nothing is left of it") from error
        if isinstance(error, RunFailed):
            raise RunFailed(str(error).replace(str(unfinished), str(target))) from error
        raise
