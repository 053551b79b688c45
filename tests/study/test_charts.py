from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from chronomoe.study import charts
from chronomoe.study.charts import Chart
from chronomoe.study.plotly_parts import packed
from chronomoe.study.run import Routing, Run

MakeRun = Callable[..., Path]


def all_charts(run: Run) -> list[Chart]:
    made = [charts.loss_chart(run), charts.coherence_chart(run), charts.max_vio_chart(run), charts.metrics_chart(run)]
    return [chart for chart in made if chart is not None] + charts.layer_charts(run)


def unpacked(spec: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(spec["bdata"]), dtype=spec["dtype"])
    return values.reshape([int(length) for length in spec["shape"].split(",")]) if "shape" in spec else values


@pytest.mark.parametrize("options", [{}, {"law": "off"}, {"dense": True}, {"steps": 1}], ids=str)
def test_every_view_is_a_figure_by_plotlys_own_schema(make_run: MakeRun, options: dict):
    made = all_charts(Run.load(make_run(**options)))
    assert made
    for chart in made:
        assert len(chart.views) == len(chart.captions) == len(chart.keys)
        for view in chart.views:
            go.Figure(view)  # raises for an attribute or a value that plotly.js does not know


def test_a_run_without_records_has_no_charts(make_run: MakeRun):
    assert all_charts(Run.load(make_run(steps=0))) == []


def test_the_usage_views_hold_the_recorded_loads_of_their_layer(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    usage = charts.layer_charts(run)[0]
    assert (usage.menus, usage.keys) == (("layer",), ["0", "1"])
    for layer, view in enumerate(usage.views):
        counts = run.routing.tokens_per_expert[:, layer]  # [N, E]
        np.testing.assert_allclose(
            unpacked(view["data"][0]["z"]), (counts / counts.mean(1, keepdims=True)).T, rtol=1e-6
        )


def test_the_lens_view_of_a_layer_has_a_line_for_every_expert(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    lens = next(chart for chart in charts.layer_charts(run) if chart.name == "lens")
    lines = [unpacked(trace["y"]) for trace in lens.views[1]["data"]]
    np.testing.assert_array_equal(np.array(lines).T, run.routing.controls["lens"][:, 1])


def test_every_recorded_metric_can_be_chosen(finished_run: Path):
    run = Run.load(finished_run)
    chart = charts.metrics_chart(run)
    assert chart is not None
    assert set(chart.keys) == set(run.metrics) - {"step"}


@pytest.mark.parametrize("array", [np.arange(5), np.linspace(0, 1, 4), np.array([[1.5, np.nan], [3, 4]])])
def test_packing_keeps_values_and_shape(array: np.ndarray):
    np.testing.assert_array_equal(unpacked(packed(array)), array.astype(np.float32))


def test_charts_of_a_long_run_of_a_wide_model_stay_under_three_megabytes():
    rng = np.random.default_rng(0)
    steps, records, shape = 200_000, 1024, (12, 64)
    names = ["train/loss", "chrono/coherence", "router/max_vio", *(f"router/layer_{i:02d}/max_vio" for i in range(12))]
    load = rng.integers(1, 999, (records, *shape))
    field = rng.standard_normal((records, *shape)).astype(np.float32)
    run = Run(
        directory=Path("long"),
        config={},
        summary={},
        metrics={"step": np.arange(steps, dtype=float)} | {name: rng.standard_normal(steps) for name in names},
        routing=Routing(
            step=np.arange(records) * 195,
            tokens_per_expert=load,
            coherence=field[:, :, 0],
            controls={"lens": field, "pressure": field, "bias": field},
        ),
    )
    assert len(json.dumps([chart.views for chart in all_charts(run)])) < 3e6
