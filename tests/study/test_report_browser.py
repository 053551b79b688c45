"""The report in a real browser, from disk, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opened_report import DESKTOP, PHONE, Opened

from chronomoe.study.report import write_report
from chronomoe.study.run import Run

pytestmark = pytest.mark.browser

CHARTS = ["loss", "coherence", "max-vio", "usage", "lens", "pressure", "bias", "metric"]


def open_run(chromium: Any, directory: Path, viewport: dict[str, int]) -> Opened:
    """With every chart drawn, and not only those near the window."""
    report = Opened(chromium, write_report(Run.load(directory)), viewport)
    report.draw_all()
    return report


@pytest.fixture(scope="module", params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def opened(request: pytest.FixtureRequest, chromium: Any, finished_run: Path) -> Opened:
    return open_run(chromium, finished_run, request.param)


def test_every_chart_is_drawn_and_the_page_fits_the_window(opened: Opened):
    lines = {chart: opened.marks(chart) for chart in CHARTS}
    # loss: recorded, smoothed, validation, unigram; coherence: 2 layers, mean, recorded and smoothed loss;
    # MaxVio: 2 layers, worst, mean; the controls: 8 experts
    assert lines == {
        "loss": 4, "coherence": 5, "max-vio": 4, "usage": 1, "lens": 8, "pressure": 8, "bias": 8, "metric": 1
    }  # fmt: skip
    assert opened.overflow() <= 0
    assert opened.complaints == []


def test_the_layer_menu_switches_usage_and_every_control(opened: Opened):
    layered = ["usage", "lens", "pressure", "bias"]
    before = {chart: opened.shown(chart) for chart in CHARTS}
    opened.page.select_option("select[data-menu=layer]", label="MoE layer 1")
    opened.draw_all()
    for chart in CHARTS:
        assert (opened.shown(chart) != before[chart]) == (chart in layered), chart
    opened.page.select_option("select[data-menu=layer]", label="MoE layer 0")
    opened.draw_all()
    assert {chart: opened.shown(chart) for chart in CHARTS} == before
    assert opened.complaints == []


def test_the_metric_menu_shows_the_chosen_metric(opened: Opened):
    opened.page.select_option("select[data-menu=metric]", label="train/lr")
    opened.draw_all()
    assert opened.page.text_content("#metric .ytitle") == "train/lr"
    opened.page.select_option("select[data-menu=metric]", index=0)


def test_charts_fit_the_paper_when_printed_and_the_window_again_after(opened: Opened):
    width = "document.querySelector('#loss .main-svg').getBoundingClientRect().width"
    before = opened.page.evaluate(width)
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.evaluate(width) == 640
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    opened.page.wait_for_function(f"Math.abs({width} - {before}) < 1")
    assert opened.complaints == []


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"dense": True}, ["loss", "metric"]),
        ({"steps": 3, "error": "loss is not finite"}, CHARTS),
        ({"steps": 0, "error": "out of memory"}, []),
    ],
    ids=["dense", "failed", "failed at once"],
)
def test_partial_runs_show_what_they_have(chromium: Any, make_run: Any, options: dict, drawn: list[str]):
    report = open_run(chromium, make_run(**options), PHONE)
    assert [figure.get_attribute("id") for figure in report.page.locator("figure").all()] == drawn
    assert all(report.marks(chart) for chart in drawn)
    assert report.page.locator("[role=alert]").count() == ("error" in options)
    assert report.overflow() <= 0
    assert report.complaints == []
