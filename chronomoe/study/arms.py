"""Which arm and which stratum a run belongs to, and what they are called.

A run of a sweep carries the overrides that make its point (`sweep.point`); they name it. Any other run is named by its
law and by what sets it apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from chronomoe.settings import InputError
from chronomoe.study.differences import Settings, check_arm, is_beneath, shaping, value_of, varying
from chronomoe.study.run import Run

BETWEEN_OVERRIDES = re.compile(r"\s+(?=[\w./@+~-]+=)")
"""Blanks before the next `key=`; a value may hold blanks of its own."""


def name_strata(runs: Sequence[Run], within: Sequence[str]) -> list[str]:
    """The stratum of each run: `model=switch_2x8`, empty when `within` is.

    Each entry of `within` is read from the runs' points where all have it, else from their configs: a key or a group,
    of which the settings that vary are named. Raises InputError for one that is no setting of any run.
    """
    settings = [shaping(run) for run in runs]
    parts: list[list[str]] = [[] for _ in runs]
    for entry in within:
        words = [point(run).get(entry) for run in runs]
        if all(words):
            labels = [f"{entry}={word}" for word in words]
        else:
            keys = [key for key in dict.fromkeys(key for mine in settings for key in mine) if is_beneath(key, [entry])]
            if not keys:
                raise InputError(f"within={entry} is no setting of these runs: give a key or a group, such as model")
            varied = varying([{key: value_of(mine, key) for key in keys} for mine in settings])
            labels = [" ".join(f"{key}={value_of(mine, key)}" for key in varied) for mine in settings]
        for part, label in zip(parts, labels, strict=True):
            part += [label] if label else []
    return [" ".join(part) for part in parts]


def name_arms(runs: Sequence[Run], within: Sequence[str] = ()) -> dict[str, dict[int, Run]]:
    """arm -> seed -> run, of the runs of one stratum.

    The name of a sweep's run is its point without the seed and without `within`. Any other arm is named by its law and
    by what sets it apart from the others of that law, unless that is how the plant is under every other law (`off`
    beside `off router.load_balancing_weight=0.01`).

    Raises InputError if two runs of an arm have one seed, for they would count twice, or differ in more than the seed.
    """
    settings = [shaping(run) for run in runs]
    pointless = [index for index, run in enumerate(runs) if not point(run)]
    names = dict(zip(pointless, names_by_law([settings[index] for index in pointless]), strict=True))
    for index, run in enumerate(runs):
        if index not in names:
            words = [
                f"{key}={word}" for key, word in point(run).items() if key != "seed" and not is_beneath(key, within)
            ]
            names[index] = " ".join(words) or law_of(settings[index])
    arms: dict[str, dict[int, Run]] = {}
    members: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        name, seed = names[index], run.setting("seed")
        if seed in arms.setdefault(name, {}):
            other = arms[name][seed].directory
            raise InputError(f"arm '{name}' has seed {seed} twice, in {other} and {run.directory}: remove one")
        arms[name][seed] = run
        members.setdefault(name, []).append(index)
    for name, indices in members.items():
        check_arm(name, [runs[index] for index in indices], [settings[index] for index in indices])
    return arms


def point(run: Run) -> dict[str, str]:
    """Override key -> value of the run's point in its sweep; empty if it is of none."""
    words = BETWEEN_OVERRIDES.split(run.setting("sweep.point") or "")
    return dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)


def names_by_law(settings: Sequence[Settings]) -> list[str]:
    """A name for each run of no sweep, from all of them."""
    by_law: dict[str, list[Settings]] = {}
    for mine in settings:
        by_law.setdefault(law_of(mine), []).append(mine)
    varied = {law: sorted(varying(of_law)) for law, of_law in by_law.items()}
    usual = {law: common_plant([other for name in by_law if name != law for other in by_law[name]]) for law in by_law}
    names = []
    for mine in settings:
        law = law_of(mine)
        apart = [key for key in varied[law] if key in mine and not (key in usual[law] and usual[law][key] == mine[key])]
        names.append(" ".join([law, *(f"{key}={mine[key]}" for key in apart)]))
    return names


def common_plant(settings: Sequence[Settings]) -> dict[str, Any]:
    """What all of them have outside the controller."""
    if not settings:
        return {}
    varied = set(varying(settings))
    return {key: value for key, value in settings[0].items() if key not in varied and not key.startswith("chrono.")}


def law_of(settings: Settings) -> str:
    return str(settings.get("chrono.law"))


def find_baseline(given: str | None, names: Sequence[str]) -> str:
    """The arm that is meant: by its name, by the same words in another order, or `off` for `chrono=off`.

    Without one given it is the arm without control, or the only one. Raises InputError, listing the arms, when there is
    none.
    """
    if given is None and len(names) == 1:
        return names[0]
    wanted = "off" if given is None else given
    for meant in (wanted, f"chrono={wanted}"):
        for name in names:
            if sorted(name.split()) == sorted(meant.split()):
                return name
    fault = "no arm is called off" if given is None else f"baseline={given} is no arm"
    raise InputError(f"{fault}: there are {', '.join(names)}; name one with baseline=")
