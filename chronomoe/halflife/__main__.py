"""`python -m chronomoe.halflife model=<run|folder|hub name> …`: does continuation pressure decay, and how fast?

Lets the model go on from many prompts, chunk by chunk, and measures every signal of its pressure; then asks of the
series what can be asked with intervals and nulls. Several models are compared: model=[a,b]. The same command goes on
where it was left, text by text.

| in `output` | what |
|---|---|
| halflife.json | everything that is said, and every text's chunks: findings.py |
| halflife.html, figures/ | the same to look at |
| `<model>/<arm>/<prompt>-<seed>.pt` | telemetry of one text, token by token: session/telemetry.py |
| `<model>/calibration.pt` | the frame of measurement |
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chronomoe import __version__
from chronomoe.entry import guarded, read_arguments
from chronomoe.halflife.arms import HUMAN, OFF, REAL, UNTRAINED, plan, record_arm
from chronomoe.halflife.console import table
from chronomoe.halflife.contrast import Difference, corrected, differences
from chronomoe.halflife.figures import draw_all
from chronomoe.halflife.findings import findings, plain
from chronomoe.halflife.page import write_page
from chronomoe.halflife.quantities import series_of
from chronomoe.halflife.recording import Recording
from chronomoe.halflife.settings import HalflifeSettings, check_halflife
from chronomoe.halflife.subject import Subject, load_subject
from chronomoe.settings import InputError
from chronomoe.whole_file import write_whole

SCHEMA = 1
CONTRASTED = ("P_mid", "Hn")


def main() -> None:
    settings = read_arguments(HalflifeSettings, sys.argv[1:])
    check_halflife(settings)
    output = Path(settings.output)
    for source in settings.model[1:]:
        plan(load_subject(source, settings), settings)  # what is wrong with a later one is said before hours of work
    models: dict[str, Any] = {}
    recorded: dict[str, dict[str, list[Recording]]] = {}
    for source in settings.model:  # one at a time in memory
        subject = load_subject(source, settings)
        if subject.name in recorded:
            raise InputError(f"model: two of them are called {subject.name}: copy one to a folder of another name")
        texts = plan(subject, settings)
        recorded[subject.name] = {
            arm: record_arm(arm, texts[arm], subject, settings, output / subject.name) for arm in texts
        }
        models[subject.name] = describe(subject, recorded[subject.name], settings)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "chronomoe": __version__,
        "settings": asdict(settings),
        "models": models,
        "contrast": plain(contrast(recorded)),
    }
    write_whole(output / "halflife.json", json.dumps(found) + "\n")
    figures = draw_all(found, output / "figures")
    write_page(found, figures, output / "halflife.html")
    print(table(found))
    print(f"\n{output / 'halflife.html'}")


def describe(subject: Subject, recorded: dict[str, list[Recording]], settings: HalflifeSettings) -> dict[str, Any]:
    found = findings(recorded, subject.language, seed=settings.seed, followed=settings.response_chunks)
    return {"about": subject.about, **found}


def contrast(recorded: dict[str, dict[str, list[Recording]]]) -> list[Difference]:
    """Every model against the first, and each against its own null arms, prompt by prompt; p corrected over all."""
    names, rows = list(recorded), []
    pairs = [((name, REAL), (names[0], REAL)) for name in names[1:]]
    pairs += [((name, REAL), (name, arm)) for name in names for arm in (OFF, UNTRAINED, HUMAN) if arm in recorded[name]]
    for (one, mine), (other, theirs) in pairs:
        a, b = same_prompts(recorded[one][mine], recorded[other][theirs])
        label = other if theirs == REAL else f"{other}, {theirs}"
        for quantity in CONTRASTED:
            rows += differences(one, series_of(a, quantity), label, series_of(b, quantity), quantity)
    return corrected(rows)


def same_prompts(mine: list[Recording], theirs: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Those of prompts that are the same text on both sides."""
    shared = {(one.prompt, one.text) for one in mine} & {(one.prompt, one.text) for one in theirs}
    return [one for one in mine if (one.prompt, one.text) in shared], [
        one for one in theirs if (one.prompt, one.text) in shared
    ]


if __name__ == "__main__":
    guarded(main)
