"""The experts of a sweep's arms, one run an arm: usage over time, the lens of every expert, and the lens's path.

Runs are those of the arms' first seed, which start from the same weights, so that an expert is the same one in all of
them. A lens is a point of as many dimensions as there are experts (in one layer, or in all); a path shows it in the two
directions in which the lenses of all runs together differ most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chronomoe.study import findings
from chronomoe.study.charts import Chart
from chronomoe.study.palette import expert_colours, utilisation_scale
from chronomoe.study.plotly_parts import View, axis, line, new_layout, packed, rounded, view
from chronomoe.study.projection import project
from chronomoe.study.run import Curve, Routing
from chronomoe.study.series import pool_counts, thin_indices, utilisation, utilisation_top
from chronomoe.study.shown_arms import ShownArm

USAGE_CELLS, LENS_POINTS = 120_000, 40_000
"""Most that all runs have together: 5 bytes a cell, 11 a point."""
MOST_LINES = 960
"""Lines of experts in all runs, if they are as large as the first: what bounds the number of runs."""
MOST_BINS = 200
PATH_POINTS = 120
MOST_LABELS = 12
TIME_MARKS = 5


class Recorded(NamedTuple):
    one: ShownArm
    routing: Routing


def read_recorded(shown: Sequence[ShownArm]) -> list[Recorded]:
    """The arms whose run has a routing record; if there is no room for all, arms evenly spread."""
    first = next((one.run.routing for one in shown if one.run.routing is not None), None)
    if first is None:
        return []
    limit = max(2, MOST_LINES // (first.num_layers * first.num_experts))
    chosen = [shown[index] for index in thin_indices(len(shown), limit)]
    return [Recorded(one, routing) for one in chosen if (routing := one.run.routing) is not None]


def num_layers(recorded: Sequence[Recorded]) -> int:
    return max(routing.num_layers for _, routing in recorded)


def usage_chart(recorded: Sequence[Recorded]) -> Chart:
    """A heat map of experts against steps, on one colour scale for all runs."""
    cells = sum(routing.num_layers * routing.num_experts for _, routing in recorded)
    bins = max(2, min(MOST_BINS, USAGE_CELLS // cells))
    pooled = [pool_counts(routing.step, routing.tokens_per_expert, bins) for _, routing in recorded]
    values = [utilisation(mine.counts) for mine in pooled]  # [bins, L, E] each
    top = max(utilisation_top(mine) for mine in values)
    keys, views, captions = [], [], []
    for (one, routing), mine, shown in zip(recorded, pooled, values, strict=True):
        for layer in range(routing.num_layers):
            keys.append(f"{one.index},{layer}")
            views.append(usage_view(packed(mine.edges), shown[:, layer].T, top))
            captions.append(f"{one.name}, seed {one.run.setting('seed')}. {findings.usage(one.run, layer)}.")
    return Chart(
        name="usage", title="Expert usage over time", captions=captions, views=views, menus=("run", "layer"), keys=keys,
        missing="This run has no such layer.",
    )  # fmt: skip


def usage_view(edges: View, shown_EB: NDArray[np.float64], top: float) -> View:
    heat_map = {
        "type": "heatmap",
        "x": edges,
        "z": packed(shown_EB),
        "zmin": 0,
        "zmax": top,
        "colorscale": [list(stop) for stop in utilisation_scale(top)],
        "colorbar": {"title": {"text": "× fair share", "side": "right", "font": {"size": 13}}, "thickness": 12}
        | {"outlinewidth": 0},
        "hovertemplate": "step %{x:.0f}<br>expert %{y}<br>%{z:.2f} × fair share<extra></extra>",
    }
    layout = new_layout("expert")
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "nticks": 9, "tickformat": "d"}
    layout["xaxis"]["showgrid"] = False
    layout["hovermode"] = "closest"
    layout["height"] = min(560, max(240, 110 + 12 * len(shown_EB)))
    return view([heat_map], layout)


def lens_chart(recorded: Sequence[Recorded]) -> Chart | None:
    """The lens of every expert of a run; None where no run's ever moved."""
    moving = with_lens(recorded)
    if not moving:
        return None
    lines = sum(routing.num_layers * routing.num_experts for _, routing in moving)
    points = max(8, min(MOST_BINS, LENS_POINTS // lines))
    keys, views, captions = [], [], []
    for one, routing in moving:
        records = thin_indices(len(routing.step), points)
        lens, step, colours = routing.controls["lens"], routing.step[records], expert_colours(routing.num_experts)
        for layer in range(routing.num_layers):
            layout = new_layout("lens (logits)")
            layout["hovermode"] = "closest"
            layout["height"] = 300
            traces = [
                line(
                    Curve(step, lens[records, layer, expert].astype(np.float64)),
                    f"expert {expert}",
                    colours[expert],
                    width=1.5,
                    showlegend=False,
                )
                for expert in range(routing.num_experts)
            ]
            keys.append(f"{one.index},{layer}")
            views.append(view(traces, layout))
            captions.append(f"{one.name}, a line an expert. {findings.reach(lens[:, layer])} logits.")
    return Chart(
        name="lens", title="Lens of every expert", captions=captions, views=views, menus=("run", "layer"), keys=keys,
        missing="This run has no lens, or one that stayed at 0.",
    )  # fmt: skip


def with_lens(recorded: Sequence[Recorded]) -> list[Recorded]:
    return [mine for mine in recorded if "lens" in mine.routing.controls and mine.routing.controls["lens"].any()]


def path_charts(recorded: Sequence[Recorded]) -> list[Chart]:
    """The path of every run's lens; a chart for each shape of model, for lenses of different lengths have no plane."""
    shapes: dict[tuple[int, ...], list[Recorded]] = {}
    for mine in with_lens(recorded):
        shapes.setdefault(mine.routing.controls["lens"].shape[1:], []).append(mine)
    made = [path_chart(number, members, len(shapes) > 1) for number, members in enumerate(shapes.values())]
    return [chart for chart in made if chart is not None]


def path_chart(number: int, recorded: Sequence[Recorded], is_one_of_many: bool) -> Chart | None:
    layers, experts = recorded[0].routing.num_layers, recorded[0].routing.num_experts
    choices = {"all": slice(None)} | (
        {str(layer): slice(layer, layer + 1) for layer in range(layers)} if layers > 1 else {}
    )
    keys, views = [], []
    for key, layer in choices.items():
        made = path_view(recorded, layer)
        if made is not None:
            keys.append(key)
            views.append(made)
    if not views:
        return None
    shape = f" of {layers} layers × {experts} experts" if is_one_of_many else ""
    caption = (
        "From their common start to the largest mark; marks are a quarter of the run apart and grow with time. "
        f"{len(recorded)} run{'s' * (len(recorded) > 1)}{shape}, principal components of all of them together."
    )
    return Chart(
        name=f"lens-path-{number}" if is_one_of_many else "lens-path",
        title="Paths of the lens",
        captions=[caption] * len(views),
        views=views,
        menus=("path",),
        keys=keys,
    )


def path_view(recorded: Sequence[Recorded], layer: slice) -> View | None:
    paths = [lens_path(routing, layer) for _, routing in recorded]
    found = project(np.concatenate(paths))
    if found is None:
        return None
    ends = np.cumsum([len(path) for path in paths])[:-1]
    traces: list[View] = []
    is_labelled = len(recorded) <= MOST_LABELS
    for (one, _), path in zip(recorded, np.split(found.coordinates_PK, ends), strict=True):
        marks = thin_indices(len(path), TIME_MARKS)
        traces.append({
            "mode": "lines", "x": packed(path[:, 0]), "y": packed(path[:, 1]),
            "line": {"color": one.colour, "width": 2, "dash": one.dash}, "hoverinfo": "skip",
            "meta": {"arm": one.index},
        })  # fmt: skip
        traces.append({
            "mode": "markers+text", "x": rounded(path[marks, 0]), "y": rounded(path[marks, 1]),
            "marker": {"color": one.colour, "opacity": 1, "size": [*range(5, 4 + len(marks)), 12]},
            "text": [*[""] * (len(marks) - 1), one.tick_text if is_labelled else ""],
            "textposition": "top center", "textfont": {"size": 11, "color": one.colour}, "cliponaxis": False,
            "customdata": [f"{share:.0%}" for share in np.linspace(0, 1, len(marks))],
            "meta": {"arm": one.index},
        })  # fmt: skip
    layout = new_layout(f"PC2 ({found.share_K[1]:.0%} of variance, logits)")
    layout["xaxis"] = axis(f"PC1 ({found.share_K[0]:.0%} of variance, logits)")
    layout |= {"height": 460, "hovermode": "closest", "showlegend": False}
    layout["meta"] = {"hover": "%{customdata} of the run"}
    return view(traces, layout)


def lens_path(routing: Routing, layer: slice) -> NDArray[np.float64]:
    """The lens at a few moments, as points [P, L E]."""
    records = thin_indices(len(routing.step), PATH_POINTS)
    lens = routing.controls["lens"][records][:, layer]
    return lens.reshape(len(records), -1).astype(np.float64)
