"""Prompts: where they come from, and what every model makes of them.

A prompt of a file is text, tokenised by each model itself; a `validation` prompt is a passage of a run's own held-out
tokens. Prompts shorter than the clocks need are refused, by name.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from chronomoe.settings import InputError


class Prompt(NamedTuple):
    id: str
    genre: str
    text: str


def read_prompts(source: str | None, most: int) -> list[Prompt]:
    """Of a file, or the package's own. Raises InputError for a file without prompts, or a broken line."""
    if source is None:
        name, content = (
            "prompts.jsonl",
            resources.files("chronomoe.halflife").joinpath("prompts.jsonl").read_text("utf-8"),
        )
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"prompts={source}: there is no such file; give a .jsonl or a text file, or leave it out")
        name, content = path.name, path.read_text("utf-8")
    lines = [line for line in content.splitlines() if line.strip()] if name.endswith(".jsonl") else []
    found = [of_line(name, number, line) for number, line in enumerate(lines, start=1)]
    if not name.endswith(".jsonl"):
        texts = [text.strip() for text in content.split("\n\n")]
        found = [Prompt(f"{number:02}", "text", text) for number, text in enumerate(filter(None, texts), start=1)]
    if not found:
        raise InputError(f"prompts={source} holds no prompt: a line each in .jsonl, or blank lines between them")
    ids = [prompt.id for prompt in found]
    wrong = next((id_ for id_ in ids if not re.fullmatch(r"[\w.-]+", id_)), None)
    if wrong is not None:
        raise InputError(f"prompts={source}: the id {wrong!r} names a file: use letters, digits, _, - and . alone")
    twice = next((id_ for id_ in ids if ids.count(id_) > 1), None)
    if twice is not None:
        raise InputError(f"prompts={source}: the id {twice} is there twice; give every prompt its own")
    return found[:most]


def of_line(name: str, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
        return Prompt(str(row.get("id", f"{number:02}")), str(row.get("genre", "text")), str(row["text"]))
    except (ValueError, KeyError, AttributeError):
        raise InputError(f'{name}, line {number} is no prompt: write {{"text": "…"}}') from None
