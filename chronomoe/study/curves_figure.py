"""`curves.png`: validation loss of every arm by tokens, and what it differs by from the baseline's, with bands.

One row a stratum: on the left the mean over seeds, on the right the mean paired difference, both with their 95% bands
(`bands.py`). A difference whose band holds 0 is not told apart there. Of many arms those of the lowest loss are drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from chronomoe.study.bands import Band, difference_band, learning_curve, mean_band, token_grid
from chronomoe.study.comparison import Arm, Comparison
from chronomoe.study.figures import DPI, WIDTH
from chronomoe.study.palette import BLACK, expert_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_STRATA = 6
MAX_ARMS = 12


def write_curves(comparison: Comparison, path: Path) -> Path | None:
    """Draw into `path`; returns it, or None where no baseline has a curve."""
    figure = draw_curves(comparison)
    if figure is None:
        return None
    figure.savefig(path, dpi=DPI)
    return path


def draw_curves(comparison: Comparison) -> Figure | None:
    """The strata whose baseline has a curve, at most MAX_STRATA of them; None if there is none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strata = [stratum for stratum in comparison.strata if has_curves(comparison.baseline_of(stratum))][:MAX_STRATA]
    if not strata:
        return None
    figure = Figure(figsize=(1.5 * WIDTH, 0.6 + 3.6 * len(strata)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(strata), 2, squeeze=False)
    for stratum, (curves, differences) in zip(strata, panels, strict=True):
        baseline, *others = [arm for arm in comparison.arms if arm.stratum == stratum and has_curves(arm)]
        shown = sorted(others, key=loss_difference)[:MAX_ARMS] if len(others) > MAX_ARMS else others
        colours = [BLACK, *expert_colours(max(1, len(shown)))]
        for arm, colour in zip([baseline, *shown], colours, strict=False):
            draw_arm(curves, differences, arm, baseline, colour)
        differences.axhline(0, color=BLACK, linewidth=1, linestyle="--")
        curves.set_title(stratum or "Mean over seeds", fontsize=11, loc="left")
        differences.set_title(f"Paired difference to {comparison.baseline}", fontsize=11, loc="left")
        curves.set_ylabel("validation loss (nats per token)")
        differences.legend(
            *curves.get_legend_handles_labels(), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
        for axes in (curves, differences):
            axes.set_xlabel("tokens trained on")
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M")
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def loss_difference(arm: Arm) -> float:
    """By which arms are chosen when not all of them can be shown."""
    return arm.effects["val_loss"].mean_difference if "val_loss" in arm.effects else math.inf


def has_curves(arm: Arm) -> bool:
    return all(len(learning_curve(run).tokens) for run in arm.runs.values())


def draw_arm(curves: Axes, differences: Axes, arm: Arm, baseline: Arm, colour: str) -> None:
    mine = {seed: learning_curve(run) for seed, run in arm.runs.items()}
    grid_G = token_grid(list(mine.values()))
    if len(grid_G):
        draw_band(curves, mean_band(list(mine.values()), grid_G), colour, arm.name)
    if not arm.is_baseline:
        theirs = {seed: learning_curve(run) for seed, run in baseline.runs.items()}
        found = difference_band(mine, theirs)
        if found is not None:
            draw_band(differences, found, colour, arm.name)


def draw_band(axes: Axes, band: Band, colour: str, name: str) -> None:
    axes.plot(band.tokens, band.mean, color=colour, linewidth=1.5, label=f"{name} ({band.seeds})")
    axes.fill_between(band.tokens, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
