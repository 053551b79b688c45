"""The page of a sweep in a real browser, from disk, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_sweeps import copy_runs, write_sweep
from opened_report import DESKTOP, PHONE, Opened

from chronomoe.report import ReportSettings, compare, open_runs
from chronomoe.study.sweep_report import Sweep, write_sweep_report

pytestmark = pytest.mark.browser

PRESSURE, ETA = "chrono.pressure_scale", "chrono.temperature.eta"
CURVES = ["validation-loss", "loss-difference", "training-loss", "coherence", "max-vio"]
CHARTS = ["forest", *CURVES, "usage", "lens", "lens-path", "specialisation"]
VISIBLE_ROWS = ".verdicts tbody tr:not([hidden])"


def write(folder: Path) -> Path:
    return write_sweep_report(Sweep.read(folder.name, folder, compare(open_runs(folder), folder, ReportSettings())))


@pytest.fixture(scope="module")
def report(swept: Path) -> Path:
    return write(swept)


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def in_both(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Opened:
    return drawn(chromium, report, request.param)


@pytest.fixture
def opened(chromium: Any, report: Path) -> Opened:
    return drawn(chromium, report, DESKTOP)


def drawn(chromium: Any, report: Path, viewport: dict[str, int]) -> Opened:
    sweep = Opened(chromium, report, viewport)
    sweep.draw_all()
    return sweep


def rows(opened: Opened) -> list[str]:
    return opened.page.locator(f"{VISIBLE_ROWS} th").all_inner_texts()


def cells(opened: Opened, column: int) -> list[str]:
    return opened.page.locator(f"{VISIBLE_ROWS} td:nth-of-type({column})").all_inner_texts()


def test_every_chart_is_drawn_and_the_page_fits_the_window(in_both: Opened):
    # lines: 10 arms, 8 of them beside a baseline or with coherence; bands of the curves are lines too
    lines = {chart: in_both.marks(chart) for chart in [*CURVES, "usage", "lens", "lens-path"]}
    assert lines == {
        "validation-loss": 20, "loss-difference": 16, "training-loss": 20, "coherence": 16, "max-vio": 20,
        "usage": 1, "lens": 8, "lens-path": 8,
    }  # fmt: skip
    # 8 arms of 3 pairs but one, and their means; 10 arms with four readings
    assert {chart: in_both.points(chart) for chart in ("forest", "specialisation")} == {
        "forest": 23 + 8, "specialisation": 40
    }  # fmt: skip
    assert in_both.overflow() <= 0
    assert in_both.complaints == []


def test_a_filter_hides_rows_and_traces_and_keeps_the_baseline(in_both: Opened):
    page = in_both.page
    page.select_option(f"[data-filter='{PRESSURE}']", label="0.05")
    in_both.draw_all()
    assert page.inner_text(".count") == "6 of 10 arms shown"  # two etas and a baseline in each of two models
    assert len(rows(in_both)) == 6
    assert {row for row in rows(in_both) if "pressure" in row} == {row for row in rows(in_both) if "=0.05" in row}
    assert [in_both.marks(chart) for chart in [*CURVES, "lens-path"]] == [12, 8, 12, 8, 12, 4]
    assert (in_both.points("forest"), in_both.points("specialisation")) == (4 * 4, 6 * 4)
    filled = page.locator(".heat td[data-arm]:not(:empty)")
    assert filled.count() == 4
    assert page.locator("select[data-menu=run] option:not([disabled])").count() == 6

    page.select_option("[data-filter='model']", label="switch_2x8")
    in_both.draw_all()
    assert page.inner_text(".count") == "3 of 10 arms shown"  # the other model's baseline is gone as well
    assert page.locator(".grid:visible").count() == 1
    assert in_both.page.locator(".arms li:visible").count() == 3 + 1  # arms, and the stratum's line

    page.click(".clear")
    in_both.draw_all()
    assert page.inner_text(".count") == "10 of 10 arms shown"
    assert in_both.marks("max-vio") == 20
    assert in_both.complaints == []


def test_the_metric_menu_changes_table_forest_and_heat_map(opened: Opened):
    page = opened.page
    before = cells(opened, 3), opened.shown("forest"), page.locator(".heat").first.inner_text()
    page.select_option("[data-menu=metric]", "load_entropy")
    opened.draw_all()
    after = cells(opened, 3), opened.shown("forest"), page.locator(".heat").first.inner_text()
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert "Load entropy minus that of chrono=off" in page.text_content("#forest .xtitle")
    better = page.locator(f"{VISIBLE_ROWS} td[data-text=better]")
    assert better.count() > 0
    assert opened.complaints == []


def test_a_click_on_a_head_sorts_and_says_so(opened: Opened):
    page = opened.page
    button = page.locator(".verdicts th", has_text="Mean").locator("button")
    given = cells(opened, 2)
    for direction, is_down in (("ascending", False), ("descending", True)):
        button.click()
        means = [float(text.split()[-1]) for text in cells(opened, 2)]
        assert means == sorted(means, reverse=is_down)
        assert page.locator(f".verdicts th[aria-sort={direction}]").inner_text().startswith("Mean")
    page.locator(".verdicts th", has_text="Difference").locator("button").click()
    assert page.locator(".verdicts th[aria-sort=none]").count() == 8
    assert cells(opened, 3)[-2:] == [text for text in cells(opened, 3) if "baseline" in text]  # no number: last
    assert sorted(cells(opened, 2)) == sorted(given)


def test_menus_and_heads_work_from_the_keyboard(opened: Opened):
    page = opened.page
    page.focus(f"[data-filter='{ETA}']")
    page.keyboard.press("ArrowDown")
    assert page.inner_text(".count") == "6 of 10 arms shown"
    page.locator(".verdicts th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".verdicts th[aria-sort=ascending]").count() == 1


def test_the_run_menu_switches_usage_and_lens_and_the_path_menu_its_plane(opened: Opened):
    before = {chart: opened.shown(chart) for chart in CHARTS}
    opened.page.select_option("[data-menu=run]", index=4)
    opened.page.select_option("[data-menu=path]", "1")
    opened.draw_all()
    changed = [chart for chart in CHARTS if opened.shown(chart) != before[chart]]
    assert changed == ["usage", "lens", "lens-path"]
    opened.page.select_option("[data-menu=run]", index=0)  # the baseline
    opened.draw_all()
    assert "no lens" in opened.page.inner_text("#lens")
    assert opened.marks("lens") == 0
    assert opened.complaints == []


def test_charts_fit_the_paper_when_printed(opened: Opened):
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    for chart in CHARTS:
        width = opened.page.evaluate(f"document.querySelector('#{chart} .main-svg').getBoundingClientRect().width")
        assert width == 640, chart
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.complaints == []


def test_charts_below_the_window_are_drawn_when_they_come_into_view(chromium: Any, report: Path):
    opened = Opened(chromium, report, DESKTOP)
    opened.page.locator("#forest").scroll_into_view_if_needed()
    opened.page.wait_for_selector("#forest .main-svg")
    assert opened.page.locator("#specialisation .main-svg").count() == 0
    opened.page.locator("#specialisation").scroll_into_view_if_needed()
    opened.page.wait_for_selector("#specialisation .main-svg")
    assert opened.complaints == []


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_sweep_of_a_thousand_runs_is_drawn(chromium: Any, thousand: Path, viewport: dict[str, int]):
    opened = Opened(chromium, thousand, viewport)
    opened.draw_all()
    assert opened.page.inner_text(".count") == "1001 of 1001 arms shown"
    assert all(0 < opened.marks(chart) <= 60 for chart in ["validation-loss", "max-vio", "lens-path"])
    assert opened.points("forest") == 2 * 40
    assert opened.overflow() <= 0
    assert opened.complaints == []


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    two = write_sweep(folder / "two", axes={PRESSURE: ("0.1",)}, seeds=(1,), steps=60)
    report = write(copy_runs(folder / "thousand", two, 1000))
    assert report.stat().st_size < 12e6
    return report
