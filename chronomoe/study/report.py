"""`report.html`: one run on one self-contained page, which works from disk and asks nothing of the network.

plotly.js travels inside the page, and a content security policy in its head forbids every request. The page is
the frame of `report.html.template` around blocks (`chronomoe/study/blocks.py`), with the data of the charts they hold,
`report.css` and `report.js`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

from chronomoe.study import blocks, charts, findings
from chronomoe.study.charts import Chart
from chronomoe.study.run import Run


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's directory; returns the file."""
    path = run.directory / "report.html"
    path.write_text(render(run), encoding="utf-8")
    return path


def render(run: Run) -> str:
    """The report of one run as an HTML document."""
    curves = [
        chart
        for chart in (charts.loss_chart(run), charts.coherence_chart(run), charts.max_vio_chart(run))
        if chart is not None
    ]
    layers = charts.layer_charts(run)
    metrics = charts.metrics_chart(run)
    body = [
        blocks.header(run),
        blocks.failure(run),
        blocks.tiles(run),
        blocks.section("Curves", *map(blocks.figure, curves)),
        blocks.section("Experts, layer by layer", *blocks.layer_browser(run, layers)),
        metric_browser(metrics) if metrics else "",
        blocks.section("Numbers", blocks.numbers_table(run)),
        blocks.section("Configuration", blocks.configuration(run), blocks.provenance(run)),
    ]
    shown = [*curves, *layers, *([metrics] if metrics else [])]
    return page(findings.identity(run), body, shown)


def metric_browser(metrics: Chart) -> str:
    menu = blocks.selector("Metric", "metric", {name: name for name in metrics.keys})
    return blocks.section("Metrics", menu, blocks.figure(metrics))


def page(
    title: str, body: Iterable[str], shown: Iterable[Chart], data: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """An HTML document: the blocks of `body`, every chart `shown` in them, and what else its script has to know."""
    from plotly.offline import get_plotlyjs

    drawn = {
        chart.name: {"menus": chart.menus, "keys": chart.keys, "views": chart.views, "captions": chart.captions}
        | {"missing": chart.missing}
        for chart in shown
    }
    content = json.dumps({"charts": drawn, **data}, separators=(",", ":"))
    return Template(resource("report.html.template")).substitute(
        title=escape(title),
        style=resource("report.css"),
        body="\n".join(block for block in body if block),
        data=content.replace("<", "\\u003c"),  # so that no text can end the script
        plotly=get_plotlyjs(),
        script=resource("report.js"),
    )


def resource(name: str) -> str:
    return resources.files("chronomoe.study").joinpath(name).read_text(encoding="utf-8")
