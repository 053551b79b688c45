"""What the pairs of a sweep show, in a sentence of numbers each; judging them is left to the reader."""

from __future__ import annotations

from collections.abc import Sequence

from chronomoe.study.effects_table import interval, signed
from chronomoe.study.measurements import METRICS, Metric
from chronomoe.study.shown_arms import ShownArm


def best(metric: Metric, shown: Sequence[ShownArm]) -> ShownArm | None:
    """The arm beside a baseline with the best mean difference; None where no arm has a pair."""
    sign = -1 if metric.higher_is_better else 1
    known = [one for one in shown if metric.key in one.arm.effects and not one.arm.is_baseline]
    return min(known, key=lambda one: sign * one.arm.effects[metric.key].mean_difference, default=None)


def finding(key: str, shown: Sequence[ShownArm], baseline: str) -> str:
    """`Lowest validation loss against off, of 5 arms: ..., −0.03 nats/token (95% interval ..., 5 pairs)`."""
    metric = METRICS[key]
    chosen = best(metric, shown)
    if chosen is None:
        return f"{metric.label}: no arm has a pair with {baseline}"
    found = chosen.arm.effects[key]
    arms = sum(key in one.arm.effects and not one.arm.is_baseline for one in shown)
    which = f"{'Highest' if metric.higher_is_better else 'Lowest'} {lower_first(metric.label)} against {baseline}"
    which += f", of {arms} arms" if arms > 1 else ""
    where = f" within {chosen.arm.stratum}" if chosen.arm.stratum else ""
    pairs = f"{found.n} pairs" if found.n > 1 else "1 pair"
    return (
        f"{which}: {chosen.arm.name}{where}, {signed(found.mean_difference, metric.form)} {metric.unit} "
        f"(95% interval {interval(found, metric.form)}, {pairs})"
    )


def has_effect(shown: Sequence[ShownArm], key: str) -> bool:
    """Whether an arm beside the baselines has a pair."""
    return any(key in one.arm.effects and not one.arm.is_baseline for one in shown)


def told_apart(key: str, shown: Sequence[ShownArm]) -> str:
    """In how many arms the interval leaves out zero."""
    effects = [one.arm.effects[key] for one in shown if key in one.arm.effects and not one.arm.is_baseline]
    lower, higher = sum(found.ci_high < 0 for found in effects), sum(found.ci_low > 0 for found in effects)
    return f"Of {len(effects)} arms, {lower} lie below the baseline with their whole interval and {higher} above."


def lower_first(text: str) -> str:
    """`Validation loss` inside a sentence; `MaxVio` stays."""
    return text if text[:2] != text[:2].title() or text[1:].lower() != text[1:] else text[0].lower() + text[1:]
