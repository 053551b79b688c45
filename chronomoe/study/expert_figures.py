"""Figures of the experts of a sweep's arms, one run an arm: usage, lenses, and the paths of lenses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from chronomoe.study.expert_charts import TIME_MARKS, Recorded, lens_path, with_lens
from chronomoe.study.figure_frame import explain_arms, new_sweep_figure, plain_numbers
from chronomoe.study.figures import (
    CONTROL_POINTS,
    STEP_LABEL,
    add_utilisation_bar,
    explain_expert_colours,
    polish,
    utilisation_colours,
    whole_numbers,
)
from chronomoe.study.palette import BLACK, SLATE, expert_colours
from chronomoe.study.projection import project
from chronomoe.study.series import pool_counts, thin_indices, utilisation, utilisation_top
from chronomoe.study.sweep_report import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 6
MOST_LAYERS = 4
MOST_PATHS = 24
USAGE_BINS = 150


def draw_usage(sweep: Sweep) -> Figure | None:
    recorded = some(sweep.recorded, MOST_ROWS)
    if not recorded:
        return None
    figure, grid = panels(sweep, recorded, "Expert usage over time", len(sweep.recorded))
    pooled = [pool_counts(routing.step, routing.tokens_per_expert, USAGE_BINS) for _, routing in recorded]
    values = [utilisation(mine.counts) for mine in pooled]
    top = max(utilisation_top(mine) for mine in values)
    for (_, routing), mine, shown, row in zip(recorded, pooled, values, grid, strict=True):
        for layer, axes in zip(thin_indices(routing.num_layers, MOST_LAYERS), row, strict=False):
            edges = np.arange(routing.num_experts + 1) - 0.5
            mesh = axes.pcolormesh(
                mine.edges, edges, shown[:, layer].T, cmap=utilisation_colours(top), vmin=0, vmax=top, rasterized=True
            )
            axes.invert_yaxis()
            axes.yaxis.set_major_locator(whole_numbers())
            axes.tick_params(colors=SLATE, labelsize=8)
            axes.spines[:].set_visible(False)
    add_utilisation_bar(figure, mesh, grid, clipped=any(bool(np.nanmax(mine, initial=0) > top) for mine in values))
    return figure


def draw_lens(sweep: Sweep) -> Figure | None:
    moving = with_lens(sweep.recorded)
    recorded = some(moving, MOST_ROWS)
    if not recorded:
        return None
    figure, grid = panels(sweep, recorded, "Lens of every expert (logits)", len(moving))
    for (_, routing), row in zip(recorded, grid, strict=True):
        records = thin_indices(len(routing.step), CONTROL_POINTS)
        for layer, axes in zip(thin_indices(routing.num_layers, MOST_LAYERS), row, strict=False):
            axes.axhline(0, color=BLACK, linewidth=0.6)
            for expert, colour in enumerate(expert_colours(routing.num_experts)):
                lens = routing.controls["lens"][records, layer, expert]
                axes.plot(routing.step[records], lens, color=colour, linewidth=1)
            polish(axes)
    explain_expert_colours(figure, grid, max((routing for _, routing in recorded), key=lambda one: one.num_experts))
    return figure


def panels(sweep: Sweep, recorded: Sequence[Recorded], title: str, there: int) -> tuple[Figure, np.ndarray]:
    """A grid of axes: an arm a row, a layer a column, as many as there is room for."""
    columns = min(MOST_LAYERS, max(routing.num_layers for _, routing in recorded))
    figure = new_sweep_figure(1.4 + 1.35 * len(recorded), title, sweep, len(recorded) < there)
    grid = figure.subplots(len(recorded), columns, sharex="col", squeeze=False)
    for (one, routing), row in zip(recorded, grid, strict=True):
        layers = thin_indices(routing.num_layers, columns)
        for layer, axes in zip(layers, row, strict=False):
            axes.set_title(f"{' '.join(one.ticks)}, layer {layer}", fontsize=8, loc="left")
        for axes in row[len(layers) :]:
            axes.set_visible(False)
    figure.supxlabel(STEP_LABEL, fontsize=10)
    return figure, grid


def draw_paths(sweep: Sweep) -> Figure | None:
    """All layers together, of the lenses that have the shape of the first."""
    moving = with_lens(sweep.recorded)
    alike = [mine for mine in moving if mine.routing.controls["lens"].shape[1:] == shape_of(moving[0])]
    recorded = some(alike, MOST_PATHS)
    paths = [lens_path(routing, slice(None)) for _, routing in recorded]
    found = project(np.concatenate(paths)) if paths else None
    if found is None:
        return None
    figure = new_sweep_figure(5.4, "Paths of the lens, from their common start", sweep, len(recorded) < len(moving))
    axes: Axes = figure.add_subplot()
    ends = np.cumsum([len(path) for path in paths])[:-1]
    for (one, _), path in zip(recorded, np.split(found.coordinates_PK, ends), strict=True):
        marks = thin_indices(len(path), TIME_MARKS)
        axes.plot(*path.T, color=one.colour, linewidth=1.5)
        sizes = [*range(12, 12 + 6 * (len(marks) - 1), 6), 70]
        axes.scatter(path[marks, 0], path[marks, 1], color=one.colour, s=sizes, zorder=3)
    polish(axes)
    axes.xaxis.set_major_locator(plain_numbers())
    axes.set_xlabel(f"PC1 ({found.share_K[0]:.0%} of variance, logits)")
    axes.set_ylabel(f"PC2 ({found.share_K[1]:.0%} of variance, logits)")
    explain_arms(axes, [one for one, _ in recorded])
    return figure


def some(recorded: Sequence[Recorded], limit: int) -> list[Recorded]:
    """At most so many, evenly spread."""
    return [recorded[index] for index in thin_indices(len(recorded), limit)]


def shape_of(mine: Recorded) -> tuple[int, ...]:
    return mine.routing.controls["lens"].shape[1:]
