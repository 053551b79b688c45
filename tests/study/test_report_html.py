from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chronomoe.study.numbers import NUMBERS, show
from chronomoe.study.report import page, render, write_report
from chronomoe.study.run import Run

MakeRun = Callable[..., Path]


class References(HTMLParser):
    """Collects what a page would load, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""
        self.hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden = tag in ("script", "style")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self.hidden else data


def test_the_report_is_one_file_under_eight_megabytes(make_run: MakeRun):
    path = write_report(Run.load(make_run(num_layers=4, num_experts=16)))
    assert path.name == "report.html"
    assert path.stat().st_size < 8e6


def test_the_page_loads_nothing_and_forbids_itself_to(finished_run: Path):
    html = render(Run.load(finished_run))
    assert References(html).loaded == ["data:,"]
    assert "default-src 'none'" in html


def test_every_number_is_shown_with_its_unit_and_meaning(finished_run: Path):
    run = Run.load(finished_run)
    text = References(render(run)).text
    for number in NUMBERS:
        assert f"{number.label}{show(run.summary[number.key], number.form)}{number.unit}{number.meaning}" in text


def test_the_resolved_configuration_is_in_the_report(finished_run: Path):
    assert "law: chronovisor" in References(render(Run.load(finished_run))).text


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_the_error_stands_above_the_curves(make_run: MakeRun, status: str):
    directory = make_run(steps=3, error="loss is not finite")
    summary = json.loads((directory / "summary.json").read_text()) | {"status": status}
    (directory / "summary.json").write_text(json.dumps(summary))
    text = References(render(Run.load(directory))).text
    assert f"The run {'was ' if status == 'stopped' else ''}{status} after step 3" in text
    assert text.index("loss is not finite") < text.index("Curves")


def test_a_run_that_left_nothing_still_gets_a_report(make_run: MakeRun):
    directory = make_run(steps=0)
    (directory / "summary.json").unlink()
    text = References(render(Run.load(directory))).text
    assert "unfinished" in text
    assert "No routing was recorded" in text


def test_text_from_a_run_cannot_become_markup(make_run: MakeRun):
    attack = "</script><script>alert(1)</script>"
    directory = make_run(steps=0, error=attack)
    (directory / "metrics.csv").write_text(f"step,{attack}\n1,2\n")
    (directory / "config.yaml").write_text(
        f"seed: '{attack}'\ndata:\n  source: '{attack}'\nchrono:\n  law: '{attack}'\n"
    )
    html = render(Run.load(directory))
    assert "<script>alert" not in html
    assert html.count("</script>") == 3  # data, plotly.js, the page's own


def test_menus_drive_charts_that_have_a_view_for_every_entry(finished_run: Path):
    html = render(Run.load(finished_run))
    charts = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["charts"]
    menus = dict(re.findall(r'<select data-menu="([^"]+)"[^>]*>(.*?)</select>', html))
    driven = {menu: [name for name, chart in charts.items() if chart["menus"] == [menu]] for menu in menus}
    assert driven == {"layer": ["usage", "lens", "pressure", "bias"], "metric": ["metric"]}
    for menu, names in driven.items():
        options = re.findall(r'<option value="([^"]+)"', menus[menu])
        for name in names:
            assert charts[name]["keys"] == options
            assert len(charts[name]["views"]) == len(charts[name]["captions"]) == len(options)


def test_a_page_can_be_made_of_any_blocks():
    html = page("Two <runs>", ["<p>one</p>", "", "<p>two</p>"], [])
    assert "<title>Two &lt;runs&gt;</title>" in html
    assert "<p>one</p>\n<p>two</p>" in html
