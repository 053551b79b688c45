"""In what runs differ, and the refusal to compare runs that differ in more than they are meant to.

Two runs whose difference has two causes say nothing about either. What leaves a run's numbers as they are (`WATCHING`),
where it resumed from and which record it plays may differ, and so may the seed, which pairs runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chronomoe.config import WATCHING
from chronomoe.settings import InputError
from chronomoe.study.run import Run

UNNAMED = ("seed", "chrono.trace")
NAMED_AT_MOST = 4
"""Keys that a refusal lists one by one; of more it names the groups."""

Settings = Mapping[str, Any]
"""Dotted key -> value."""


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested config."""
    if not isinstance(node, Mapping):
        return {prefix[:-1]: node}
    return {key: value for name, child in node.items() for key, value in flatten(child, f"{prefix}{name}.").items()}


def shaping(run: Run) -> dict[str, Any]:
    """The settings that make a run what it is, the seed aside."""
    settings = flatten(run.config)
    return {key: value for key, value in settings.items() if key not in UNNAMED and not key.startswith(WATCHING)}


def varying(settings: Sequence[Settings]) -> list[str]:
    """Keys whose value is not the same in all, one that is not there being a value of its own."""
    keys = dict.fromkeys(key for mine in settings for key in mine)
    return [key for key in keys if any(value_of(mine, key) != value_of(settings[0], key) for mine in settings)]


def value_of(settings: Settings, key: str) -> Any:
    return settings.get(key, "(no such setting)")


def is_beneath(key: str, entries: Iterable[str]) -> bool:
    """Whether a key is one of `entries` or in a group that one of them names (`chrono`, `chrono/clocks`)."""
    return any(f"{key}.".replace("/", ".").startswith(f"{entry}.".replace("/", ".")) for entry in entries)


def check_axis(runs: Sequence[Run], settings: Sequence[Settings], axis: Sequence[str]) -> None:
    """Raises InputError when runs that are to be compared differ in a setting that `axis` does not name."""
    wrong = [key for key in varying(settings) if not is_beneath(key, axis)]
    if not wrong:
        return
    raise InputError(
        f"runs differ in {listed(wrong)} and not only along axis={','.join(axis) or '(nothing)'}: "
        f"{example(runs, settings, wrong[0])}; allow it with axis={','.join([*axis, *shortened(wrong)])}, "
        f"or compare inside its values with within={','.join(shortened(wrong))}"
    )


def check_arm(name: str, runs: Sequence[Run], settings: Sequence[Settings]) -> None:
    """Raises InputError when the runs of one arm differ in more than the seed."""
    wrong = varying(settings)
    if wrong:
        raise InputError(
            f"the runs of arm '{name}' differ in {listed(wrong)}: {example(runs, settings, wrong[0])}; compare inside "
            f"its values with within={','.join(shortened(wrong))}, or give one of their folders"
        )


def example(runs: Sequence[Run], settings: Sequence[Settings], key: str) -> str:
    """Two runs that differ in `key`, with their values."""
    first = value_of(settings[0], key)
    other = next(index for index, mine in enumerate(settings) if value_of(mine, key) != first)
    there = value_of(settings[other], key)
    return f"{runs[0].directory} has {key}={first}, {runs[other].directory} has {key}={there}"


def listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NAMED_AT_MOST} more" if len(keys) > NAMED_AT_MOST else ""
    return ", ".join(keys[:NAMED_AT_MOST]) + more


def shortened(keys: Sequence[str]) -> list[str]:
    """The keys; of many, the groups they are in."""
    return list(keys) if len(keys) <= NAMED_AT_MOST else list(dict.fromkeys(key.split(".")[0] for key in keys))
