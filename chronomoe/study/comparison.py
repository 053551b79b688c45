"""Runs compared: which arm each belongs to, what pairs it with the baseline, and what the pairs say.

An *arm* is a set of runs that differ in nothing but the seed. Arms are compared with the baseline of their *stratum*:
the runs that agree in every setting that `within` names. Within a stratum, arms may differ in the settings that `axis`
names and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chronomoe.settings import InputError
from chronomoe.study.arms import find_baseline, name_arms, name_strata
from chronomoe.study.differences import check_axis, shaping, varying
from chronomoe.study.measurements import METRICS, measure
from chronomoe.study.pairs import Effect, effect
from chronomoe.study.run import Run
from chronomoe.study.significance import holm


@dataclass(frozen=True, kw_only=True)
class Arm:
    name: str
    """Unique within its stratum, such as `chrono.pressure_scale=0.1`."""
    stratum: str
    """`model=switch_2x8`; empty when all runs are in one."""
    settings: Mapping[str, Any]
    """Dotted key -> value of every setting in which arms differ (axis and within), for heat maps and filters."""
    runs: Mapping[int, Run]
    """seed -> run."""
    is_baseline: bool
    values: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Metric -> seed -> the run's value, for the metrics that any of its runs has."""
    effects: Mapping[str, Effect]
    """Metric (key of `measurements.METRICS`) -> paired effect against the stratum's baseline. A metric that no pair has
    is missing. The baseline's own effects have a difference of zero."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    axis: Sequence[str]
    """Dotted keys, or prefixes of keys, in which arms may differ."""
    within: Sequence[str]
    baseline: str
    """Name of the arm that the others are held against, in every stratum."""
    arms: Sequence[Arm]
    """By stratum, the baseline first, then in the order the runs were given."""
    left_out: Sequence[Run]
    """Unfinished and failed runs."""
    shared: Mapping[str, Any]
    """Dotted key -> value of every setting that all runs have in common."""
    notes: Sequence[str] = ()
    """What a reader should know besides, a sentence each: arms that are the same, strata without a baseline."""

    @property
    def strata(self) -> list[str]:
        return list(dict.fromkeys(arm.stratum for arm in self.arms))

    def baseline_of(self, stratum: str) -> Arm:
        return next(arm for arm in self.arms if arm.stratum == stratum and arm.is_baseline)


def compare_runs(
    runs: Sequence[Run], *, axis: Sequence[str] = ("chrono",), within: Sequence[str] = (), baseline: str | None = None
) -> Comparison:
    """Runs in arms and strata, each arm held against the baseline of its stratum.

    `within` holds groups or keys, as overrides name them (`model`) or configs (`data.seq_len`). Without a `baseline` it
    is the arm without control. p-values are corrected, metric by metric, for all arms of all strata beside a baseline.

    Raises InputError when no run is finished, when runs of a stratum differ in more than `axis`, when an arm has a seed
    twice, or when no stratum has the baseline.
    """
    finished = [run for run in runs if is_finished(run)]
    if not finished:
        raise InputError(f"none of the {len(runs)} runs is finished: there is nothing to compare")
    strata: dict[str, list[Run]] = {}
    for run, stratum in zip(finished, name_strata(finished, within), strict=True):
        strata.setdefault(stratum, []).append(run)
    named: dict[str, dict[str, dict[int, Run]]] = {}
    for stratum, members in strata.items():
        check_axis(members, [shaping(run) for run in members], axis)
        named[stratum] = name_arms(members, within)
    chosen = find_baseline(baseline, list(dict.fromkeys(name for arms in named.values() for name in arms)))
    held = {stratum: arms for stratum, arms in named.items() if chosen in arms}
    first = [next(iter(seeds.values())) for arms in held.values() for seeds in arms.values()]
    apart = varying([shaping(run) for run in first])
    arms = [arm for stratum, by_name in held.items() for arm in arms_of(stratum, by_name, chosen, apart)]
    everything = [shaping(run) for run in finished]
    differing = set(varying(everything))
    return Comparison(
        axis=list(axis),
        within=list(within),
        baseline=chosen,
        arms=correct(arms),
        left_out=[run for run in runs if not is_finished(run)],
        shared={key: value for key, value in everything[0].items() if key not in differing},
        notes=[*without_baseline(named, chosen), *twins(arms), *versions(finished)],
    )


def is_finished(run: Run) -> bool:
    return bool(run.summary.get("status") == "done")


def arms_of(stratum: str, by_name: Mapping[str, Mapping[int, Run]], baseline: str, apart: Sequence[str]) -> list[Arm]:
    """The arms of one stratum, the baseline first, with effects whose p-values are not corrected yet."""
    measured = {name: by_metric(seeds) for name, seeds in by_name.items()}
    arms = []
    for name in sorted(by_name, key=lambda name: name != baseline):
        effects = {
            key: effect(values, measured[baseline].get(key, {}), METRICS[key].higher_is_better)
            for key, values in measured[name].items()
        }
        settings = shaping(next(iter(by_name[name].values())))
        arms.append(
            Arm(
                name=name,
                stratum=stratum,
                settings={key: settings[key] for key in apart if key in settings},
                runs=by_name[name],
                is_baseline=name == baseline,
                values=measured[name],
                effects={key: found for key, found in effects.items() if found is not None},
            )
        )
    return arms


def by_metric(seeds: Mapping[int, Run]) -> dict[str, dict[int, float]]:
    """Metric -> seed -> value; a metric that no run has is missing."""
    measured = {seed: measure(run) for seed, run in seeds.items()}
    found = {key: {seed: values[key] for seed, values in measured.items() if key in values} for key in METRICS}
    return {key: values for key, values in found.items() if values}


def correct(arms: Sequence[Arm]) -> list[Arm]:
    """The arms with corrected p-values. A baseline is held against itself, which is no test: it has none."""
    p_values: dict[str, dict[int, float]] = {}
    for number, arm in enumerate(arms):
        for key, found in arm.effects.items():
            if not arm.is_baseline and found.p is not None:
                p_values.setdefault(key, {})[number] = found.p
    corrected = {key: holm(cells) for key, cells in p_values.items()}
    return [
        replace(
            arm,
            effects={
                key: found._replace(p=None)
                if arm.is_baseline
                else found._replace(corrected_p=corrected[key].get(number))
                for key, found in arm.effects.items()
            },
        )
        for number, arm in enumerate(arms)
    ]


def without_baseline(named: Mapping[str, Mapping[str, Any]], baseline: str) -> list[str]:
    return [
        f"{stratum} has no finished run of {baseline}: its arms ({', '.join(arms)}) are left out"
        for stratum, arms in named.items()
        if baseline not in arms
    ]


def twins(arms: Sequence[Arm]) -> list[str]:
    """Arms of one stratum that are the very same settings under two names."""
    names: dict[str, list[str]] = {}
    for arm in arms:
        settings = sorted(shaping(next(iter(arm.runs.values()))).items())
        names.setdefault(f"{arm.stratum} {settings}", []).append(arm.name)
    same = [together for together in names.values() if len(together) > 1]
    return [f"{' and '.join(together)} are the same settings under {len(together)} names" for together in same]


def versions(runs: Sequence[Run]) -> list[str]:
    """A note when the runs come from more than one version of the code or of torch."""
    seen = dict.fromkeys(
        (run.summary.get("git_revision"), (run.summary.get("versions") or {}).get("torch")) for run in runs
    )
    if len(seen) == 1:
        return []
    shown = ", ".join(f"{short(revision)} with torch {torch}" for revision, torch in seen)
    return [f"the runs come from {len(seen)} versions: {shown}"]


def short(revision: str | None) -> str:
    """Nine digits, and the `+` of a changed tree."""
    return "unknown" if revision is None else revision[:9] + "+" * revision.endswith("+")
