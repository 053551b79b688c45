"""The comparison as Markdown tables, one a metric, that fit a terminal of 120 columns when names are short."""

from __future__ import annotations

from collections.abc import Sequence

from chronomoe.study.comparison import Arm, Comparison
from chronomoe.study.measurements import METRICS, Metric


def tables(comparison: Comparison) -> str:
    """A table for each metric that any arm has."""
    return "\n\n".join(
        table(metric, [arm for arm in comparison.arms if key in arm.effects])
        for key, metric in METRICS.items()
        if any(key in arm.effects for arm in comparison.arms)
    )


def table(metric: Metric, arms: Sequence[Arm]) -> str:
    better = "higher" if metric.higher_is_better else "lower"
    head = f"{metric.label} ({metric.unit}, {better} is better)"
    rows = [[head, "n", "mean (difference: 95% interval)", "wins", "p", "corrected p"]]
    rows += [row(metric.key, arm) for arm in arms]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) for cells in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def row(key: str, arm: Arm) -> list[str]:
    found = arm.effects[key]
    mean = f"{found.mean:.4g}"
    if arm.is_baseline:
        return [label(arm), str(found.n), f"{mean} (baseline)", "", "", ""]
    difference = f"{mean} ({found.mean_difference:+.3g}: {found.ci_low:+.3g} to {found.ci_high:+.3g})"
    p, corrected = (show_p(value) for value in (found.p, found.corrected_p))
    return [label(arm), str(found.n), difference, f"{found.wins}/{found.n}", p, corrected]


def label(arm: Arm) -> str:
    """The arm's name, with its stratum where there are several."""
    return f"{arm.stratum}: {arm.name}" if arm.stratum else arm.name


def show_p(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
