"""Files that are whole or as they were: written beside their place, then moved into it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Replace a text file at once; another process may do so at the same time."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Returns the file."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
    return path
