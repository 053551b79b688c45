"""`python -m chronomoe.report run=<folder>`: draw a run's figures and write its `report.html` again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from chronomoe.entry import guarded
from chronomoe.settings import InputError
from chronomoe.study.figures import draw_run
from chronomoe.study.report import write_report
from chronomoe.study.run import Run


def main() -> None:
    run = Run.load(run_directory(sys.argv[1:]))
    for path in [*draw_run(run), write_report(run)]:
        print(path)


def run_directory(arguments: Sequence[str]) -> str:
    """The value of the one argument, `run=<folder>`."""
    key, _, value = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if key != "run" or not value:
        given = " ".join(arguments) or "no argument"
        raise InputError(f"{given}: this command takes one argument, run=<folder that train.py wrote>")
    return value


if __name__ == "__main__":
    guarded(main)
