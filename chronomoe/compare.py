"""`python -m chronomoe.compare runs=<folder> baseline=off`: paired differences between the arms of a multirun.

Reads every finished run below the folder, pairs them by seed, prints one table and writes `compare.json` and
`compare.png` (loss against balance) into it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, setting
from chronomoe.study.front_figure import write_front
from chronomoe.study.pairs import ENOUGH_PAIRS, METRICS, Effect, effect, name_arms
from chronomoe.study.run import Run


@dataclass(kw_only=True)
class CompareSettings:
    runs: str = setting()
    """A folder of runs, such as a multirun's."""
    baseline: str = setting("off")
    """The arm the others are compared with."""


def main() -> None:
    settings = read_arguments(CompareSettings, sys.argv[1:])
    folder = Path(settings.runs)
    found = [Run.load(path.parent) for path in sorted(folder.rglob("config.yaml")) if path.parent.name != ".hydra"]
    arms = name_arms([run for run in found if run.summary.get("status") == "done"])
    if settings.baseline not in arms:
        raise InputError(f"baseline={settings.baseline} is no arm of {folder}: there are {', '.join(arms) or 'none'}")
    table = {
        metric: {name: effect(arm, arms[settings.baseline], metric) for name, arm in arms.items()} for metric in METRICS
    }
    saved = {m: {name: e._asdict() for name, e in effects.items() if e} for m, effects in table.items()}
    (folder / "compare.json").write_text(json.dumps(saved, indent=2) + "\n")
    print(f"| arm (n pairs) | {' | '.join(METRICS)} |")
    print("|---" * (len(METRICS) + 1) + "|")
    for name, arm in arms.items():
        cells = " | ".join(show(table[metric][name], name == settings.baseline) for metric in METRICS)
        print(f"| {name} ({len(arm.keys() & arms[settings.baseline].keys())}) | {cells} |")
    loss, balance = ({n: found for n, found in table[m].items() if found} for m in ("val_loss", "max_vio_late"))
    if len(loss.keys() & balance.keys()) > 1:
        print(f"\n{write_front(loss, balance, settings.baseline, folder / 'compare.png')}")
    if any(len(arm) < ENOUGH_PAIRS for arm in arms.values()):
        print(f"\nFewer than {ENOUGH_PAIRS} pairs: an interval from so few says little.")


def show(found: Effect | None, is_baseline: bool) -> str:
    """Mean, and the paired difference with its interval for every arm but the baseline."""
    if found is None:
        return "-"
    mean = f"{found.mean:.4g}"
    if is_baseline:
        return mean
    return f"{mean} ({found.mean_difference:+.3g}: {found.ci_low:+.3g} to {found.ci_high:+.3g})"


if __name__ == "__main__":
    guarded(main)
