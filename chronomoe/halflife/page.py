"""`halflife.html`: the measurement on one self-contained page: conclusions, tables, figures, and what was generated."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from chronomoe.halflife.arms import REAL
from chronomoe.halflife.console import contrast_line, lines
from chronomoe.study import blocks
from chronomoe.study.report import page
from chronomoe.whole_file import write_whole

TEXTS_SHOWN = 12


def write_page(found: dict[str, Any], figures: Sequence[Path], path: Path) -> None:
    names = list(found["models"])
    body = [f"<header><h1>Pressure half-life: {escape(', '.join(names))}</h1></header>"]
    conclusions = "".join(
        f"<li><b>{escape(name)}</b>: {escape(model['conclusion'])}</li>" for name, model in found["models"].items()
    )
    body.append(blocks.section("Conclusions", f"<ul>{conclusions}</ul>"))
    shared = [figure for figure in figures if figure.stem in ("models", "slopes")]
    body.append(blocks.section("All arms", *map(picture, shared)))
    for name, model in found["models"].items():
        own = [figure for figure in figures if figure.stem.rpartition("-")[0] == name]
        body.append(blocks.section(name, preformatted("\n".join(lines(name, model))), *map(picture, own)))
    if found["contrast"]:
        rows = "\n".join(map(contrast_line, found["contrast"]))
        body.append(blocks.section("Held against each other", preformatted(rows)))
    body += [blocks.section(f"Texts of {name}", *texts(model)) for name, model in found["models"].items()]
    body.append(blocks.section("Settings", preformatted(json.dumps(found["settings"], indent=2))))
    write_whole(path, page("Pressure half-life", body, []))


def preformatted(text: str) -> str:
    return f'<pre style="white-space: pre-wrap">{escape(text)}</pre>'


def picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img style="max-width: 100%" alt="{escape(path.stem)}" src="data:image/png;base64,{data}"></figure>'
    )


def texts(model: dict[str, Any]) -> list[str]:
    """Some, evenly spread, folded up."""
    rows = [row for row in model["series"] if row["arm"] == REAL]
    shown = rows[:: max(1, len(rows) // TEXTS_SHOWN)][:TEXTS_SHOWN]
    return [
        f"<details><summary>{escape(row['prompt'])}, seed {row['seed']}, {len(row['tokens'])} chunks, "
        f"{escape(row['stop'])}</summary>{preformatted(''.join(row['chunks']['text']))}</details>"
        for row in shown
    ]
