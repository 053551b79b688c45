"""Figures of what the pairs of a sweep say: differences, their heat map, specialisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chronomoe.study.effects_table import interval, is_unclear, signed
from chronomoe.study.figure_frame import new_sweep_figure, plain_numbers, some_arms
from chronomoe.study.figures import polish
from chronomoe.study.heat_map import HeatMap
from chronomoe.study.measurements import METRICS, Metric
from chronomoe.study.palette import BLACK, BLUE, DIFFERENCE, GREEN, SLATE, VERMILION
from chronomoe.study.shown_arms import ShownArm
from chronomoe.study.sweep_findings import has_effect
from chronomoe.study.sweep_report import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN_METRICS = ("val_loss", "max_vio_late")
MOST_ROWS = 40
MOST_MAPS = 4


def draw_differences(sweep: Sweep) -> Figure | None:
    keys = [key for key in DRAWN_METRICS if has_effect(sweep.shown, key)]
    if not keys:
        return None
    arms = [one for one in sweep.shown if not one.arm.is_baseline]
    rows = some_arms(arms, MOST_ROWS)
    figure = new_sweep_figure(
        row_height(rows), f"Paired differences to {sweep.comparison.baseline}", sweep, len(rows) < len(arms)
    )
    for key, axes in zip(keys, figure.subplots(1, len(keys), sharey=True, squeeze=False).flat, strict=True):
        draw_effects(axes, METRICS[key], rows, sweep)
    return figure


def row_height(rows: list[ShownArm]) -> float:
    """Inches of a figure with a row an arm."""
    lines = max(len(one.ticks) for one in rows)
    return 1.8 + len(rows) * (0.16 + 0.15 * lines)


def draw_effects(axes: Axes, metric: Metric, rows: list[ShownArm], sweep: Sweep) -> None:
    for place, one in enumerate(rows):
        found = one.arm.effects.get(metric.key)
        if found is None:
            continue
        theirs = sweep.baselines[one.arm.stratum].values[metric.key]
        pairs = [value - theirs[seed] for seed, value in one.arm.values[metric.key].items() if seed in theirs]
        axes.plot(pairs, np.full(len(pairs), place + 0.27), ".", color=one.colour, markersize=5, alpha=0.5)
        axes.plot([found.ci_low, found.ci_high], [place, place], color=SLATE, linewidth=1.6)
        axes.plot(found.mean_difference, place, "o", color=one.colour, markersize=7)
    axes.axvline(0, color=BLACK, linewidth=1)
    label_rows(axes, rows)
    better = "higher" if metric.higher_is_better else "lower"
    axes.set_xlabel(f"{metric.label},\ndifference to the baseline ({metric.unit}; {better} is better)", fontsize=9)


def label_rows(axes: Axes, rows: list[ShownArm]) -> None:
    polish(axes)
    axes.xaxis.set_major_locator(plain_numbers())
    axes.set_yticks(range(len(rows)), ["\n".join(one.ticks) for one in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def draw_heat_map(sweep: Sweep) -> Figure | None:
    """The first tables."""
    maps, metric = sweep.maps[:MOST_MAPS], METRICS["val_loss"]
    if not maps or not has_effect(sweep.shown, metric.key):
        return None
    height = 1.3 + sum(0.9 + 0.42 * len(one.rows) for one in maps)
    title = f"{metric.label}: mean paired difference, 95% interval"
    figure = new_sweep_figure(height, title, sweep, len(maps) < len(sweep.maps))
    drawn = [arm for one in maps for row in one.arms for arm in row if arm is not None]
    effects = [sweep.shown[arm].arm.effects.get(metric.key) for arm in drawn]
    top = max((abs(found.mean_difference) for found in effects if found is not None), default=0) or 1.0
    ratios = [len(one.rows) for one in maps]
    panels = figure.subplots(len(maps), 1, squeeze=False, height_ratios=ratios)
    for one, axes in zip(maps, panels.flat, strict=True):
        draw_map(axes, one, metric, sweep, top)
    add_bar(figure, panels, f"{metric.label}, difference ({metric.unit})\nhatched: the interval includes 0")
    return figure


def draw_map(axes: Axes, one: HeatMap, metric: Metric, sweep: Sweep, top: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    values = np.full((len(one.rows), len(one.columns)), np.nan)
    size = 8 if len(one.columns) <= 6 else 5
    for row, arms in enumerate(one.arms):
        for column, arm in enumerate(arms):
            found = None if arm is None else sweep.shown[arm].arm.effects.get(metric.key)
            if found is None:
                continue
            values[row, column] = found.mean_difference
            text = f"{signed(found.mean_difference, metric.form)}\n{interval(found, metric.form)}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size)
            if is_unclear(found):
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor="#0000001A", linewidth=0))
    colours = LinearSegmentedColormap.from_list("difference", DIFFERENCE)
    axes.imshow(values, cmap=colours, vmin=-top, vmax=top, aspect="auto")
    axes.set_xticks(range(len(one.columns)), one.columns, fontsize=8)
    axes.set_yticks(range(len(one.rows)), one.rows, fontsize=8)
    axes.set_xlabel(one.column_key, fontsize=9)
    axes.set_ylabel(one.row_key, fontsize=9)
    axes.set_title(one.where, fontsize=9, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=SLATE)


def add_bar(figure: Figure, panels: np.ndarray, label: str) -> None:
    bar = figure.colorbar(panels.flat[0].images[0], ax=panels, pad=0.015, aspect=30)
    bar.set_label(label, fontsize=9)
    bar.outline.set_visible(False)  # type: ignore[operator]


def draw_specialisation(sweep: Sweep) -> Figure | None:
    there = [one for one in sweep.shown if one.index in sweep.specialisation]
    if not there:
        return None
    rows = some_arms(there, MOST_ROWS)
    figure = new_sweep_figure(
        row_height(rows), "Specialisation by domain, with its nulls", sweep, len(rows) < len(there)
    )
    axes = figure.add_subplot()
    for place, one in enumerate(rows):
        found = sweep.specialisation[one.index]
        first = place == 0
        axes.plot([found.trained.low, found.trained.high], [place, place], color=BLUE, linewidth=1.6)
        axes.plot(found.trained.mean, place, "o", color=BLUE, label="trained, 95% interval over seeds" * first)
        for value, mark, colour, name in (
            (found.untrained, "o", VERMILION, "untrained twin"),
            (found.floor, "|", SLATE, "random routing"),
            (found.ceiling, "D", GREEN, "ideal routing"),
        ):
            if value is not None:
                axes.plot(value, place, mark, color=colour, markerfacecolor="none", label=name * first)
    axes.axvline(0, color=BLACK, linewidth=1, linestyle="--")
    label_rows(axes, rows)
    axes.set_xlabel("what an expert tells about the domain (debiased: 0 = chance, 1 = everything)", fontsize=9)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure
