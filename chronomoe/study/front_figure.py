"""`compare.png`: loss against balance, one mark an arm, and the arms that no other beats in both (the Pareto front).

Loss is the paired difference to the baseline with its 95% interval, balance the mean MaxVio of the last steps. The
front is that of the means; intervals that overlap say that another set of seeds may draw it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chronomoe.study.figures import DPI, WIDTH
from chronomoe.study.pairs import Effect
from chronomoe.study.palette import BLACK, PALE_GREY, SLATE, VERMILION

MAX_LABELS = 30
"""Arms up to which all are named; of more only the front is."""


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points that no other point is at least as good as in both numbers and better in one (less is
    better)."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    ]


def write_front(loss: Mapping[str, Effect], balance: Mapping[str, Effect], baseline: str, path: Path) -> Path:
    """Draw the arms that have both numbers into `path`; returns it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = [name for name in loss if name in balance]
    points = {name: (balance[name].mean, loss[name].mean_difference) for name in arms}
    best = front(points)
    figure = Figure(figsize=(WIDTH, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name in arms:
        x, y = points[name]
        colour = VERMILION if name in best else SLATE
        spread = np.array([[y - loss[name].ci_low], [loss[name].ci_high - y]]).clip(min=0)
        axes.errorbar(x, y, yerr=spread, fmt="o", color=colour, ecolor=PALE_GREY, elinewidth=1.5, markersize=6)
        together = [other for other in arms if points[other] == points[name]]
        labelled = name == together[0] and (name in best or len(arms) <= MAX_LABELS)
        label = ", ".join(together) if labelled else ""  # two laws may do the very same
        axes.annotate(label, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8.5, color=colour)
    steps = sorted(points[name] for name in best)
    axes.plot(*zip(*steps, strict=True), color=VERMILION, linewidth=1, linestyle=":", zorder=0)
    axes.axhline(0, color=BLACK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("MaxVio over the last steps (0 is perfect balance)")
    axes.set_ylabel(f"validation loss against {baseline} (nats per token, paired, 95% interval)")
    axes.set_title("Less of both is better; nothing beats the arms in red in both", fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)
    return path
