"""What the arms' coherence says: is it associated with loss (`association.py`), and which phases has it (`phases.py`)?

In `compare.json`:

| key | what |
|---|---|
| association.arms | arm -> changes and ends (the fields of `Association`, or null), over_time (which misleads) |
| association.together | the same of all arms side by side, over the seeds they share |
| phases | arm -> seed -> phases (first_step, last_step, level, spread, label), p, coefficient |
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from chronomoe.study.association import COHERENCE, Association, Panel, of_changes, of_ends, over_time, read_panel
from chronomoe.study.comparison import Arm
from chronomoe.study.phases import Phases, find_phases


class ArmCoherence(NamedTuple):
    panel: Panel | None
    phases: dict[int, Phases]
    """By seed, of the runs whose curve is long enough and moves."""


def read_coherence(arm: Arm) -> ArmCoherence:
    found = {seed: find_phases(run.curve(COHERENCE)) for seed, run in arm.runs.items()}
    return ArmCoherence(read_panel(arm.runs), {seed: phases for seed, phases in found.items() if phases is not None})


def say_association(name: str, panels: Sequence[Panel]) -> str:
    """One line; `panels` of one arm, or of several side by side. n is seeds × columns."""
    line = f"{name}: changes {say_part(of_changes(panels))}; end {say_part(of_ends(panels))}"
    over = over_time(panels[0]) if len(panels) == 1 else None
    return line if over is None else f"{line}; over time {over:+.2f}"


def say_part(found: Association | None) -> str:
    if found is None:
        return "– (too few seeds, or no change)"
    null = f"{round(found.null_mean, 2) + 0.0:.2f} ± {found.null_sd:.2f}"  # + 0.0 makes -0.0 plain
    return f"{found.r:+.2f} (null {null}, p {found.p:.2g}, n {found.seeds} × {found.columns})"


def say_phases(name: str, phases: Sequence[Phases]) -> str:
    """One line over the seeds of an arm."""
    changed = [found for found in phases if found.changes]
    line = f"{name}: changes of phase in {len(changed)} of {len(phases)} seeds"
    if not changed:
        return line
    exploring = sum(any(phase.label == "exploration" for phase in found.phases) for found in changed)
    number = median(len(found.changes) for found in changed)
    last = median(found.changes[-1] for found in changed)
    return f"{line} (median {number:g}, the last at step {last:g}); exploration in {exploring}"


def association_json(panels: dict[str, Panel]) -> dict[str, Any]:
    everything = list(panels.values())
    return {
        "arms": {name: parts_json([panel]) | {"over_time": over_time(panel)} for name, panel in panels.items()},
        "together": parts_json(everything),
    }


def parts_json(panels: Sequence[Panel]) -> dict[str, Any]:
    found = {"changes": of_changes(panels), "ends": of_ends(panels)}
    return {name: None if part is None else part._asdict() for name, part in found.items()}


def phases_json(phases: dict[int, Phases]) -> dict[str, Any]:
    return {
        str(seed): found._asdict() | {"phases": [phase._asdict() for phase in found.phases]}
        for seed, found in phases.items()
    }
