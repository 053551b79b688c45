"""The interactive charts of one run, as plain plotly.js figures (dictionaries of `data` and `layout`).

A chart has one view, or one view a layer (or metric) between which the report's menus switch. Arrays are thinned
and packed as base64 typed arrays, so that a report stays small for a run of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chronomoe.study import findings
from chronomoe.study.palette import (
    BLACK,
    BLUE,
    ORANGE,
    PALE_BLUE,
    PALE_GREY,
    VERMILION,
    expert_colours,
    utilisation_scale,
)
from chronomoe.study.plotly_parts import View, axis, line, new_layout, packed, view
from chronomoe.study.run import Curve, Routing, Run
from chronomoe.study.series import (
    pool_counts,
    smooth,
    smoothing_window,
    thin,
    thin_indices,
    utilisation,
    utilisation_top,
)

CURVE_POINTS = 1000
METRIC_POINTS = 500
HEAT_MAP_CELLS, TRAJECTORY_POINTS = 120_000, 40_000
"""Most that one chart holds over all its layers and experts: 5 bytes a cell, 11 a point, so 2 MB for all of them."""
MAX_LAYER_LINES = 16
"""Beyond this many layers, charts of one line a layer show the mean alone."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    name: str
    """Identifier in the page."""
    title: str
    captions: Sequence[str]
    """What is seen, one sentence a view."""
    views: Sequence[View]
    menus: Sequence[str] = ()
    """The menus whose choices, joined by commas, are the key of the view that is drawn."""
    keys: Sequence[str] = ("",)
    """Of the views."""
    missing: str = ""
    """What is said in place of a view that there is none of."""


def loss_chart(run: Run) -> Chart | None:
    train, val = run.curve("train/loss"), run.curve("val/loss")
    if not len(train.step) and not len(val.step):
        return None
    traces = train_loss_traces(train)
    if len(val.step):
        traces.append(line(thin(val, CURVE_POINTS), "validation", VERMILION, mode="lines+markers"))
    unigram = findings.unigram_loss(run)
    if unigram is not None:
        steps = np.concatenate([train.step, val.step])
        flat = Curve(np.array([steps.min(), steps.max()]), np.array([unigram, unigram]))
        traces.append(line(flat, "unigram model", BLACK, dash="dash"))
    layout = new_layout("loss (nats per token)")
    return Chart(name="loss", title="Loss", captions=[findings.loss(run)], views=[view(traces, layout)])


def coherence_chart(run: Run) -> Chart | None:
    mean, layers = run.curve("chrono/coherence"), findings.coherence_by_layer(run)
    if not len(mean.step):
        return None
    traces = [
        line(thin(curve, CURVE_POINTS), f"layer {layer}", PALE_GREY, width=1, showlegend=False)
        for layer, curve in enumerate(layers if 1 < len(layers) <= MAX_LAYER_LINES else [])
    ]
    traces.append(line(thin(mean, CURVE_POINTS), "coherence, mean of layers", VERMILION))
    traces += [trace | {"yaxis": "y2"} for trace in train_loss_traces(run.curve("train/loss"))]
    layout = new_layout(f"coherence ({findings.coherence_scale(run)})", VERMILION)
    layout["yaxis2"] = axis("training loss (nats per token)", BLUE) | {
        "overlaying": "y",
        "side": "right",
        "showgrid": False,
        "tickmode": "auto",  # plotly.js would set this axis's ticks at the other's gridlines, on odd numbers
    }
    return Chart(
        name="coherence", title="Coherence and loss", captions=[findings.coherence(run)], views=[view(traces, layout)]
    )


def max_vio_chart(run: Run) -> Chart | None:
    mean, worst = run.curve("router/max_vio"), run.curve("router/max_vio_worst")
    if not len(mean.step):
        return None
    layers = sorted(name for name in run.metrics if name.startswith("router/layer_") and name.endswith("/max_vio"))
    traces = [
        line(
            thin(run.curve(name), CURVE_POINTS),
            name.split("/")[1].replace("_", " "),
            PALE_GREY,
            width=1,
            showlegend=False,
        )
        for name in (layers if 1 < len(layers) <= MAX_LAYER_LINES else [])
    ]
    if len(worst.step):
        traces.append(line(thin(worst, CURVE_POINTS), "worst layer", ORANGE))
    traces.append(line(thin(mean, CURVE_POINTS), "mean of layers", BLUE))
    layout = new_layout("MaxVio (0 = even load)")
    layout["yaxis"]["rangemode"] = "tozero"
    return Chart(name="max-vio", title="MaxVio", captions=[findings.max_vio(run)], views=[view(traces, layout)])


def layer_charts(run: Run) -> list[Chart]:
    """The charts with a view for each MoE layer: usage first, then every control. None without a routing record."""
    if run.routing is None:
        return []
    return [usage_chart(run, run.routing), *control_charts(run.routing)]


def usage_chart(run: Run, routing: Routing) -> Chart:
    """A heat map: experts against steps."""
    num_layers, num_experts = routing.num_layers, routing.num_experts
    bins = share_of(HEAT_MAP_CELLS, num_layers * num_experts)
    pooled = pool_counts(routing.step, routing.tokens_per_expert, bins)
    shown = utilisation(pooled.counts)  # [bins, L, E]
    top = utilisation_top(shown)
    heat_map = {
        "type": "heatmap",
        "x": packed(pooled.edges),
        "zmin": 0,
        "zmax": top,
        "colorscale": [list(stop) for stop in utilisation_scale(top)],
        "colorbar": {
            "title": {"text": "utilisation", "side": "right", "font": {"size": 13}},
            "thickness": 12,
            "outlinewidth": 0,
        },
        "hovertemplate": "step %{x:.0f}<br>expert %{y}<br>%{z:.2f} × fair share<extra></extra>",
    }
    layout = new_layout("expert")
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False, "nticks": 9, "tickformat": "d"}
    layout["xaxis"]["showgrid"] = False
    layout["hovermode"] = "closest"
    layout["height"] = min(640, max(260, 120 + 12 * num_experts))
    return Chart(
        name="usage",
        title="Expert usage",
        captions=[findings.usage(run, layer) for layer in range(num_layers)],
        views=[view([heat_map | {"z": packed(shown[:, layer].T)}], layout) for layer in range(num_layers)],
        menus=("layer",),
        keys=layer_keys(num_layers),
    )


def control_charts(routing: Routing) -> list[Chart]:
    """Lens, pressure and bias (and the log-temperature where it was used): a line an expert."""
    num_layers, num_experts = routing.num_layers, routing.num_experts
    records = thin_indices(len(routing.step), share_of(TRAJECTORY_POINTS, num_layers * num_experts))
    step, colours = routing.step[records], expert_colours(num_experts)
    charts = []
    for name, values in findings.shown_controls(routing).items():
        layout = new_layout(findings.CONTROL_UNITS[name])
        layout["height"] = 280
        layout["hovermode"] = "closest"
        views = []
        for layer in range(num_layers):
            curves = [Curve(step, values[records, layer, expert].astype(np.float64)) for expert in range(num_experts)]
            lines = [
                line(curve, f"expert {expert}", colours[expert], width=1.5, showlegend=False)
                for expert, curve in enumerate(curves)
            ]
            views.append(view(lines, layout))
        captions = [findings.reach(values[:, layer]) for layer in range(num_layers)]
        title = name.replace("_", " ").capitalize()
        keys = layer_keys(num_layers)
        charts.append(Chart(name=name, title=title, captions=captions, views=views, menus=("layer",), keys=keys))
    return charts


def metrics_chart(run: Run) -> Chart | None:
    """Any recorded metric, a view each."""
    curves = {name: run.curve(name) for name in sorted(run.metrics) if name != "step"}
    curves = {name: curve for name, curve in curves.items() if len(curve.step)}
    if not curves:
        return None
    return Chart(
        name="metric",
        title="Every recorded metric",
        captions=[f"{len(curve.step):,} records, last {curve.value[-1]:.4g}" for curve in curves.values()],
        views=[
            view([line(thin(curve, METRIC_POINTS), name, BLUE, showlegend=False)], new_layout(name))
            for name, curve in curves.items()
        ],
        menus=("metric",),
        keys=list(curves),
    )


def layer_keys(num_layers: int) -> list[str]:
    return [str(layer) for layer in range(num_layers)]


def train_loss_traces(train: Curve) -> list[View]:
    """The recorded loss, pale, under its running mean."""
    if not len(train.step):
        return []
    window = smoothing_window(len(train.step))
    if window == 1:
        return [line(thin(train, CURVE_POINTS), "training loss", BLUE)]
    return [
        line(thin(train, CURVE_POINTS), "training loss, each record", PALE_BLUE, width=1, showlegend=False),
        line(thin(smooth(train, window), CURVE_POINTS), f"training loss, mean of {window} records", BLUE),
    ]


def share_of(budget: int, lines: int) -> int:
    """Points that each of so many lines may have."""
    return min(CURVE_POINTS, max(2, budget // lines))
