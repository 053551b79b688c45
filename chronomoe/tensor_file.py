"""Files of tensors and plain values that are whole or as they were: written beside their place, then moved into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from chronomoe.settings import RunFailed

WRITER = ("PytorchStreamWriter", "inline_container")
"""What stands in torch's errors about a file that could not be written."""


def save_tensors(content: dict[str, Any], path: Path) -> None:
    """On disk when this returns. Raises RunFailed if the disk refuses; what was there before is untouched then."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if not isinstance(error, OSError) and not any(name in str(error) for name in WRITER):
            raise  # no fault of the disk, which torch reports in the name of its writer
        reason = error.strerror if isinstance(error, OSError) else "the write failed, the disk may be full"
        kept = "; the previous one is untouched" if path.exists() else ""
        raise RunFailed(f"could not save {path}: {reason}{kept}") from error
