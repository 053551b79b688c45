"""What is said of every arm's effect on one metric, as text: the cells of the verdict table.

Beside a metric's own direction, both verdicts are those of `verdicts.py`: by the 95% interval, and by the documented
rule (two in three pairs better: robust), which for the loss asks for specialisation too, where runs were evaluated.
"""

from __future__ import annotations

from typing import NamedTuple

from chronomoe.study.comparison import Arm
from chronomoe.study.measurements import Metric
from chronomoe.study.pairs import Effect
from chronomoe.study.verdicts import INTERVAL_PAIRS, of_interval, of_share, verdict


class Cells(NamedTuple):
    pairs: str
    mean: str
    difference: str
    interval: str
    wins: str
    corrected_p: str
    verdict: str
    documented: str


HEADS = Cells("Pairs", "Mean", "Difference", "95% interval", "Wins", "Corrected p", "By interval", "Documented")


def cells(metric: Metric, arm: Arm, baseline: Arm) -> Cells | None:
    """None for an arm without a pair."""
    found = arm.effects.get(metric.key)
    if found is None:
        return None
    mean = format(found.mean, metric.form)
    if arm.is_baseline:
        return Cells(str(found.n), mean, "baseline", "", "", "", "", "")
    return Cells(
        pairs=str(found.n),
        mean=mean,
        difference=signed(found.mean_difference, metric.form),
        interval=interval(found, metric.form),
        wins=f"{found.wins}/{found.n}",
        corrected_p="" if found.corrected_p is None else f"{found.corrected_p:.2g}",
        verdict=by_interval(metric, found),
        documented=documented(metric, found, arm, baseline),
    )


def documented(metric: Metric, found: Effect, arm: Arm, baseline: Arm) -> str:
    """What the documented rule says, and of how many pairs that count as better."""
    said = verdict(arm, baseline) if metric.key == "val_loss" else None
    if said is None:
        return f"{of_share(found.wins / found.n)} ({found.wins}/{found.n})"
    return f"{said.documented} ({said.better}/{said.n})"


def by_interval(metric: Metric, found: Effect) -> str:
    turned = found._replace(ci_low=-found.ci_high, ci_high=-found.ci_low) if metric.higher_is_better else found
    return of_interval(turned)


def is_unclear(found: Effect) -> bool:
    """Whether the pairs leave open which way the arm differs."""
    return found.n < INTERVAL_PAIRS or found.ci_low <= 0 <= found.ci_high


def interval(found: Effect, form: str) -> str:
    return f"{signed(found.ci_low, form)} to {signed(found.ci_high, form)}"


def signed(value: float, form: str) -> str:
    """`+0.0183`, `−0.0100`: with a minus as wide as the plus."""
    return format(value, f"+{form}").replace("-", "−")
