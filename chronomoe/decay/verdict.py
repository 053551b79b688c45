"""What may be said of an arm, in one line; it says "not identifiable" where that is what was found."""

from __future__ import annotations

from chronomoe.decay.arm import Arm, Shape
from chronomoe.decay.attainable import Attainable
from chronomoe.decay.series import FEWEST_CHUNKS


def conclusion(arm: Arm, attainable: Attainable) -> str:
    """The first of these that holds: too degenerate, too short, variance 0, stable, changing; then what limits it."""
    line = finding(arm, attainable)
    return f"{line} ({arm.shortage})" if arm.shortage else line


def finding(arm: Arm, attainable: Attainable) -> str:
    degenerate = sum(series.onset < len(series.value_K) or series.stop == "degenerate" for series in arm.series)
    if 2 * degenerate > len(arm.series):
        return f"degenerate/untrained: not interpretable; {degenerate} of {len(arm.series)} series repeat themselves"
    if not arm.verdicts:
        return f"not identifiable: no series has {FEWEST_CHUNKS} chunks"
    if all((series.observed_K == series.observed_K[:1]).all() for series in arm.series):
        frozen = f"; frozen inputs: {', '.join(attainable.frozen)}" if attainable.frozen else ""
        return f"stable, variance 0{frozen}"
    if arm.pooled is None:
        alone = ", ".join(f"{number} {verdict}" for verdict, number in arm.verdicts.most_common())
        return f"not identifiable: one prompt says nothing of others; its series by themselves: {alone}"
    found = describe(arm.pooled)
    if not attainable.half_reachable:
        low, high, half = attainable.low, attainable.high, attainable.start / 2
        return f"{found}; half is out of reach: the inputs allow {low:.3g} to {high:.3g}, half is {half:.3g}"
    return f"{found}; {timing(arm)}"


def describe(shape: Shape) -> str:
    """The shape and its size."""
    if shape.verdict == "stable":
        return "stable: no change that stands against noise and prompts"
    start, end = shape.fitted.at(0), shape.fitted.at(shape.fitted.chunks - 1)
    moved = f"{'decay' if end < start else 'rise'} from {start:.3g} to {end:.3g}"
    if shape.verdict == "undetermined":
        return f"{moved}, shape undetermined"
    if shape.verdict != "exponential":
        return f"{shape.verdict} {moved}"
    if shape.by_tau.chunks is None:
        return f"exponential {moved}, half-life not identifiable: {shape.fault}"
    return f"exponential {moved}, the excess halves in {shape.by_tau.chunks:.3g} chunks"


def timing(arm: Arm) -> str:
    """When half is lost, with how many runs lost it and how many were censored."""
    if arm.survival is None:
        return f"time to half not identifiable: {arm.refusal}"
    half, stopped = int(arm.survival.table.half_BT.sum()), int(arm.survival.table.stopped_BT.sum())
    censored = len(arm.series) - half - stopped
    counts = f"{half} of {len(arm.series)} runs lost half, {censored} censored, {stopped} ended themselves"
    median, low, high, *_ = arm.survival.median
    if median is None:
        return f"median not reached ({counts})"
    bounds = "" if low is None else f" [{low:g}, {'not reached' if high is None else f'{high:g}'}]"
    return f"median {median:g} chunks{bounds} ({counts})"
