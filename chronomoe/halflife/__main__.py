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
from chronomoe.halflife.arms import HUMAN, OFF, REAL, UNTRAINED, record_arm
from chronomoe.halflife.console import table
from chronomoe.halflife.contrast import differences
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
    subjects = [load_subject(source, settings) for source in settings.model]
    check_names(subjects)
    recorded = {subject.name: record_subject(subject, settings, output / subject.name) for subject in subjects}
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "chronomoe": __version__,
        "settings": asdict(settings),
        "models": {subject.name: describe(subject, recorded[subject.name], settings) for subject in subjects},
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


def check_names(subjects: list[Subject]) -> None:
    names = [subject.name for subject in subjects]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"model: two of them are called {twice}: copy one to a folder of another name")


def record_subject(subject: Subject, settings: HalflifeSettings, folder: Path) -> dict[str, list[Recording]]:
    """Arm -> its texts."""
    arms = [REAL]
    if settings.nulls:
        arms += [*([OFF] if subject.steered else []), UNTRAINED, HUMAN]
    return {arm: record_arm(arm, subject, settings, folder) for arm in arms}


def contrast(recorded: dict[str, dict[str, list[Recording]]]) -> list[Any]:
    """Every model against the first; and each against its own null arms, where prompts are the same."""
    rows: list[Any] = []
    names = list(recorded)
    for quantity in CONTRASTED:
        real = {name: series_of(recorded[name][REAL], quantity) for name in names}
        for name in names[1:]:
            rows += differences(name, real[name], names[0], real[names[0]], quantity)
        for name in names:
            for arm in (OFF, UNTRAINED):
                if arm in recorded[name]:
                    theirs = series_of(recorded[name][arm], quantity)
                    rows += differences(name, real[name], f"{name}, {arm}", theirs, quantity)
    return rows


if __name__ == "__main__":
    guarded(main)
