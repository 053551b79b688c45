"""The report in a real browser, from disk, without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chronomoe.study.report import write_report
from chronomoe.study.run import Run

pytestmark = pytest.mark.browser

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("background-networking", "component-update", "sync", "gpu")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MARKS = ".scatterlayer path.js-line[d], .hm image"  # lines, and the image of a heat map
CHARTS = ["loss", "coherence", "max-vio", "usage", "lens", "pressure", "bias", "metric"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail(f"no Chromium on the PATH (looked for {', '.join(CHROMIUMS)})")
        pytest.skip("no Chromium on the PATH")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


class Opened:
    """A report open in an offline browser, with everything it complained about and asked for."""

    def __init__(self, chromium: Any, directory: Path, viewport: dict[str, int]) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        url = write_report(Run.load(directory)).as_uri()
        self.page = chromium.new_context(offline=True, viewport=viewport).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        assert [request for request in self.requests if not request.startswith("data:")] == [url]

    def marks(self, chart: str) -> int:
        """Lines and heat maps that a chart has drawn."""
        return self.page.locator(f"#{chart} .plot").locator(MARKS).count()

    def shown(self, chart: str) -> str:
        """What a chart draws and says, to tell whether it changed."""
        marks = self.page.locator(f"#{chart} .plot").locator(MARKS)
        drawn = marks.evaluate_all("marks => marks.map(mark => mark.getAttribute('d') || mark.href.baseVal)")
        return f"{drawn} {self.page.inner_text(f'#{chart} figcaption p')}"

    def overflow(self) -> int:
        """Pixels that the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(scope="module", params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def opened(request: pytest.FixtureRequest, chromium: Any, finished_run: Path) -> Opened:
    return Opened(chromium, finished_run, request.param)


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
    opened.page.select_option("select[data-charts^='usage']", label="MoE layer 1")
    for chart in CHARTS:
        assert (opened.shown(chart) != before[chart]) == (chart in layered), chart
    opened.page.select_option("select[data-charts^='usage']", label="MoE layer 0")
    assert {chart: opened.shown(chart) for chart in CHARTS} == before
    assert opened.complaints == []


def test_the_metric_menu_shows_the_chosen_metric(opened: Opened):
    opened.page.select_option("select[data-charts='metric']", label="train/lr")
    assert opened.page.text_content("#metric .ytitle") == "train/lr"
    opened.page.select_option("select[data-charts='metric']", index=0)


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
    report = Opened(chromium, make_run(**options), PHONE)
    assert [figure.get_attribute("id") for figure in report.page.locator("figure").all()] == drawn
    assert all(report.marks(chart) for chart in drawn)
    assert report.page.locator("[role=alert]").count() == ("error" in options)
    assert report.overflow() <= 0
    assert report.complaints == []
