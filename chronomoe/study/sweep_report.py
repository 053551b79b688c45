"""`report.html` of a sweep, or of any folder of runs: what its arms differ in, on one page like that of a run.

Everything is read once into a `Sweep`; the page (here) and the figures beside it (`sweep_figures.py`) are made of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronomoe.study import blocks, sweep_blocks
from chronomoe.study.charts import Chart, layer_keys
from chronomoe.study.coherence_block import coherence_table
from chronomoe.study.comparison import Arm, Comparison, is_finished
from chronomoe.study.effects_table import cells, is_unclear
from chronomoe.study.expert_charts import Recorded, lens_chart, num_layers, path_charts, read_recorded, usage_chart
from chronomoe.study.heat_map import HeatMap, heat_maps
from chronomoe.study.measurements import METRICS
from chronomoe.study.palette import DIFFERENCE
from chronomoe.study.progress import progress
from chronomoe.study.report import page
from chronomoe.study.run import Run
from chronomoe.study.shown_arms import ShownArm, as_json, show_arms, words_of
from chronomoe.study.specialisation import Specialisation, read_specialisation
from chronomoe.study.sweep_charts import curve_charts, forest_chart, specialisation_chart
from chronomoe.study.sweep_curves import Bands, Kind, read_bands
from chronomoe.study.sweep_points import Point, unfinished_points


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is shown of a folder of runs."""

    name: str
    folder: Path
    comparison: Comparison
    shown: Sequence[ShownArm]
    baselines: dict[str, Arm]
    """Stratum -> its baseline."""
    points: Sequence[Point]
    """Without a finished run."""
    bands: dict[Kind, Bands]
    specialisation: dict[int, Specialisation]
    recorded: Sequence[Recorded]
    maps: Sequence[HeatMap]

    @classmethod
    def read(cls, name: str, folder: Path, comparison: Comparison) -> Sweep:
        shown = show_arms(comparison)
        baselines = {stratum: comparison.baseline_of(stratum) for stratum in comparison.strata}
        finished = [run for arm in comparison.arms for run in arm.runs.values()]
        found = {one.index: read_specialisation(one.arm) for one in shown}
        return cls(
            name=name,
            folder=folder,
            comparison=comparison,
            shown=shown,
            baselines=baselines,
            points=unfinished_points(folder, comparison.left_out, finished),
            bands=read_bands(progress(shown, "curves", "arm"), baselines),
            specialisation={index: mine for index, mine in found.items() if mine is not None},
            recorded=read_recorded(shown),
            maps=heat_maps(shown),
        )

    @property
    def metrics(self) -> list[str]:
        """Keys of the metrics that any arm has."""
        return [key for key in METRICS if any(key in one.arm.effects for one in self.shown)]


def write_sweep_report(sweep: Sweep) -> Path:
    """Write `report.html` into the sweep's folder; returns the file."""
    path = sweep.folder / "report.html"
    path.write_text(render_sweep(sweep), encoding="utf-8")
    return path


def write_unfinished(name: str, folder: Path, reason: str, runs: Sequence[Run]) -> Path:
    """The page of a sweep that has nothing to compare yet."""
    finished = [run for run in runs if is_finished(run)]
    unfinished = [run for run in runs if not is_finished(run)]
    points = unfinished_points(folder, unfinished, finished)
    body = [
        sweep_blocks.without_comparison(name, str(folder), reason, points, finished),
        blocks.section("Points that are not finished", sweep_blocks.points_table(points)),
    ]
    path = folder / "report.html"
    path.write_text(page(f"Sweep {name}", body, []), encoding="utf-8")
    return path


def render_sweep(sweep: Sweep) -> str:
    shown, comparison, strata = sweep.shown, sweep.comparison, sweep.comparison.strata
    forest = forest_chart(shown, sweep.baselines, comparison.baseline)
    curves = curve_charts(shown, sweep.bands, comparison.baseline)
    specialisation = specialisation_chart(shown, sweep.specialisation)
    experts = run_charts(sweep.recorded)
    paths = path_charts(sweep.recorded)
    table = metric_table(sweep)
    first = next(iter(table.values()))["cells"] if table else []
    body = [
        sweep_blocks.header(sweep.name, str(sweep.folder), shown, comparison, sweep.points),
        sweep_blocks.notes(comparison),
        sweep_blocks.filter_bar(shown, sweep.metrics),
        blocks.section("Verdicts", *([sweep_blocks.verdict_table(shown, first)] if first else [])),
        blocks.section("Differences to the baseline", *([blocks.figure(forest)] if forest else [])),
        blocks.section("Two settings at a time", *sweep_blocks.heat_map_tables(sweep.maps)),
        blocks.section("Learning curves", *curve_parts(curves, sweep)),
        blocks.section("Experts, run by run", *expert_parts(experts, sweep.recorded)),
        blocks.section("Paths of the lens", *path_parts(paths)),
        blocks.section("Specialisation", *([blocks.figure(specialisation)] if specialisation else [])),
        blocks.section("Coherence", *coherence_table(shown)),
        blocks.section("How the arms differ", *settings_parts(sweep)),
        blocks.section("Points that are not finished", sweep_blocks.points_table(sweep.points)),
    ]
    charts = [chart for chart in (forest, *curves, *experts, *paths, specialisation) if chart is not None]
    data = {"arms": as_json(shown), "metrics": table, "shades": DIFFERENCE, "within": list(words_of(" ".join(strata)))}
    return page(f"Sweep {sweep.name}", body, charts, data)


def metric_table(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """Metric -> what the page's script says of each arm: the texts of its cells, its difference, if that is unclear."""
    table: dict[str, dict[str, Any]] = {}
    for key in sweep.metrics:
        metric = METRICS[key]
        found = [one.arm.effects.get(key) for one in sweep.shown]
        table[key] = {
            "unit": metric.unit,
            "higher": metric.higher_is_better,
            "cells": [cells(metric, one.arm, sweep.baselines[one.arm.stratum]) for one in sweep.shown],
            "effects": [
                None if mine is None else [float(f"{mine.mean_difference:.5g}"), is_unclear(mine)] for mine in found
            ],
        }
    return table


def curve_parts(curves: Sequence[Chart], sweep: Sweep) -> list[str]:
    """The legend, then the curves two by two."""
    if not curves:
        return []
    legend = sweep_blocks.arm_legend(sweep.shown, sweep.comparison.strata)
    return [legend, f'<div class="columns pairs">{"".join(map(blocks.figure, curves))}</div>']


def run_charts(recorded: Sequence[Recorded]) -> list[Chart]:
    if not recorded:
        return []
    lens = lens_chart(recorded)
    return [usage_chart(recorded), *([lens] if lens is not None else [])]


def expert_parts(charts: Sequence[Chart], recorded: Sequence[Recorded]) -> list[str]:
    """Usage, and the lens where there is one, under a menu of runs and one of layers."""
    if not charts:
        return []
    usage, *lens = charts
    runs = {str(one.index): one.name for one, _ in recorded}
    layers = {key: f"MoE layer {key}" for key in layer_keys(num_layers(recorded))}
    first = lens[0].keys[0].split(",")[0] if lens else ""
    menus = blocks.selector("Run", "run", runs, first) + blocks.selector("Layer", "layer", layers)
    legend = blocks.expert_legend(max(routing.num_experts for _, routing in recorded)) if lens else ""
    return [f'<div class="menus">{menus}</div>', blocks.figure(usage), legend, *map(blocks.figure, lens)]


def path_parts(paths: Sequence[Chart]) -> list[str]:
    keys = list(dict.fromkeys(key for chart in paths for key in chart.keys))
    names = {key: "all layers together" if key == "all" else f"MoE layer {key}" for key in keys}
    menu = [blocks.selector("Lens of", "path", names)] if len(keys) > 1 else []
    return [*menu, *map(blocks.figure, paths)]


def settings_parts(sweep: Sweep) -> list[str]:
    table = sweep_blocks.settings_table(sweep.shown, sweep.baselines)
    return [table, sweep_blocks.shared_settings(sweep.comparison.shared)]
