"""The charts of a sweep: plotly's schema, what they hold, and that every trace names its arms."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from chronomoe.report import ReportSettings, compare, open_runs
from chronomoe.study.charts import Chart
from chronomoe.study.expert_charts import lens_chart, path_charts, usage_chart
from chronomoe.study.palette import arm_styles
from chronomoe.study.sweep_charts import curve_charts, forest_chart, specialisation_chart
from chronomoe.study.sweep_report import Sweep


@pytest.fixture(scope="module")
def sweep(swept: Path) -> Sweep:
    return Sweep.read("made", swept, compare(open_runs(swept), swept, ReportSettings()))


def unpacked(spec: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(spec["bdata"]), dtype=spec["dtype"])
    return values.reshape([int(length) for length in spec["shape"].split(",")]) if "shape" in spec else values


def all_charts(sweep: Sweep) -> list[Chart]:
    made = [
        forest_chart(sweep.shown, sweep.baselines, "chrono=off"),
        *curve_charts(sweep.shown, sweep.bands, "chrono=off"),
        usage_chart(sweep.recorded),
        lens_chart(sweep.recorded),
        *path_charts(sweep.recorded),
        specialisation_chart(sweep.shown, sweep.specialisation),
    ]
    return [chart for chart in made if chart is not None]


def named(sweep: Sweep, name: str) -> Chart:
    return next(chart for chart in all_charts(sweep) if chart.name == name)


def test_every_view_is_a_figure_by_plotlys_own_schema(sweep: Sweep):
    assert [chart.name for chart in all_charts(sweep)] == [
        "forest", "validation-loss", "loss-difference", "training-loss", "coherence", "max-vio",
        "usage", "lens", "lens-path", "specialisation",
    ]  # fmt: skip
    for chart in all_charts(sweep):
        assert len(chart.views) == len(chart.captions) == len(chart.keys) == len(set(chart.keys))
        for view in chart.views:
            go.Figure(view)


def test_every_trace_names_its_arms_so_that_a_filter_can_hide_it(sweep: Sweep):
    for chart in all_charts(sweep):
        if "run" not in chart.menus:
            for trace in chart.views[0]["data"]:
                arms = trace["meta"].get("arms", [trace["meta"].get("arm")])
                assert all(0 <= arm < len(sweep.shown) for arm in arms)


def test_the_forest_holds_every_pair_and_the_effects(sweep: Sweep):
    forest = named(sweep, "forest")
    dots, means = forest.views[forest.keys.index("max_vio_late")]["data"]
    others = [one for one in sweep.shown if not one.arm.is_baseline]
    assert means["meta"]["arms"] == [one.index for one in others]
    effects = [one.arm.effects["max_vio_late"] for one in others]
    np.testing.assert_allclose(means["x"], [found.mean_difference for found in effects], rtol=1e-4)
    high = np.array(means["x"]) + means["error_x"]["array"]
    np.testing.assert_allclose(high, [found.ci_high for found in effects], rtol=1e-3)
    assert len(dots["x"]) == sum(found.n for found in effects)
    for one in others:
        mine = [x for x, arm in zip(dots["x"], dots["meta"]["arms"], strict=True) if arm == one.index]
        assert np.mean(mine) == pytest.approx(one.arm.effects["max_vio_late"].mean_difference, rel=1e-3)


def test_a_curve_is_its_arms_mean_over_tokens(sweep: Sweep):
    kind = next(kind for kind in sweep.bands if kind.name == "training-loss")
    lines = [trace for trace in named(sweep, "training-loss").views[0]["data"] if "band" not in trace["meta"]]
    for trace in lines:
        band = sweep.bands[kind][trace["meta"]["arm"]]
        np.testing.assert_allclose(unpacked(trace["x"]), band.tokens)
        np.testing.assert_allclose(unpacked(trace["y"]), band.mean, rtol=1e-6)


def test_usage_has_a_view_for_each_run_and_layer(sweep: Sweep):
    usage = named(sweep, "usage")
    assert usage.menus == ("run", "layer")
    assert usage.keys == [f"{one.index},{layer}" for one in sweep.shown for layer in range(2)]
    shares = unpacked(usage.views[0]["data"][0]["z"])
    assert len(shares) == 8
    np.testing.assert_allclose(shares.mean(0), 1, rtol=1e-5)  # the mean over experts is the fair share


def test_arms_without_a_lens_have_no_path(sweep: Sweep):
    path = named(sweep, "lens-path")
    assert {trace["meta"]["arm"] for trace in path.views[0]["data"]} == {
        one.index for one in sweep.shown if not one.arm.is_baseline
    }
    assert path.keys == ["all", "0", "1"]
    assert "% of variance, logits)" in path.views[0]["layout"]["xaxis"]["title"]["text"]


def test_all_paths_start_at_one_point(sweep: Sweep):
    marks = [trace for trace in named(sweep, "lens-path").views[0]["data"] if "customdata" in trace]
    starts = np.array([[trace["x"][0], trace["y"][0]] for trace in marks])
    spread = np.ptp(np.array([trace["x"] for trace in marks]))
    assert np.ptp(starts, axis=0).max() < 0.1 * spread


def test_specialisation_stands_beside_its_nulls(sweep: Sweep):
    traces = {trace["name"]: trace for trace in named(sweep, "specialisation").views[0]["data"]}
    assert list(traces) == [
        "trained", "untrained twin (the words alone)", "random routing (floor)", "ideal routing (ceiling)"
    ]  # fmt: skip
    assert all(len(trace["x"]) == len(sweep.shown) for trace in traces.values())


@pytest.mark.parametrize(
    ("number", "is_ordered", "may_dash"), [(7, False, True), (14, False, True), (30, False, False)]
)
def test_every_arm_has_its_own_line(number: int, is_ordered: bool, may_dash: bool):
    assert len(set(arm_styles(number, is_ordered, may_dash=may_dash))) == number
