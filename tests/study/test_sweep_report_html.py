"""The page of a sweep, as text."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
import yaml
from made_sweeps import write_sweep

from chronomoe.report import ReportSettings, compare, open_runs, report_sweep
from chronomoe.study.sweep_report import Sweep, render_sweep

FAILURE = "loss is <nan> & not finite"


def html_of(folder: Path, **settings: object) -> str:
    comparison = compare(open_runs(folder), folder, ReportSettings(**settings))
    return render_sweep(Sweep.read(folder.name, folder, comparison))


@pytest.fixture(scope="module")
def html(swept: Path) -> str:
    return html_of(swept)


def data_of(html: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', html)[1])


def text_of(html: str) -> str:
    """What is read on the page, without its scripts and styles."""
    return unescape(re.sub(r"<[^>]+>", "", re.sub(r"<(script|style).*?</\1>", "", html, flags=re.DOTALL)))


def test_the_blocks_stand_in_their_order(html: str):
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Verdicts", "Differences to the baseline", "Two settings at a time", "Learning curves", "Experts, run by run",
        "Paths of the lens", "Specialisation", "Coherence", "How the arms differ", "Points that are not finished",
    ]  # fmt: skip


def test_the_header_says_what_was_swept_and_the_best_arm_in_numbers(html: str):
    text = text_of(html)
    assert "29 done, 1 failed" in text
    assert re.search(
        r"Lowest validation loss against chrono=off, of 8 arms: .* within model=.*−0\.\d{4} nats/token", text
    )
    assert re.search(r"95% interval [+−]0\.\d{4} to [+−]0\.\d{4}, 3 pairs", text)
    assert "Compared withinmodel" in text


def test_the_page_loads_nothing_and_forbids_itself_to(html: str):
    assert not re.search(r'<\w+[^>]*\b(src|href|srcset)="(?!data:)', html.split("<main>")[0])
    assert "default-src 'none'" in html


def test_the_verdict_table_has_a_row_an_arm_and_texts_for_every_metric(html: str):
    data = data_of(html)
    rows = re.findall(r'<tr data-arm="(\d+)"', html)
    assert rows == [str(index) for index in range(len(data["arms"]))]
    assert {"val_loss", "max_vio_late", "specialisation", "specialisation_gain"} <= set(data["metrics"])
    for metric in data["metrics"].values():
        assert len(metric["cells"]) == len(metric["effects"]) == len(rows)
    first = data["metrics"]["val_loss"]["cells"][1]
    row = re.search(r'<tr data-arm="1".*?</tr>', html)[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row) == first


def test_every_setting_with_a_choice_has_a_filter(html: str):
    menus = dict(re.findall(r'<select data-filter="([^"]+)"[^>]*>(.*?)</select>', html))
    values = {key: re.findall(r'value="=([^"]*)"', options) for key, options in menus.items()}
    assert values == {
        "model": ["mixtral_2x8", "switch_2x8"],
        "chrono.pressure_scale": ["0.05", "0.5", ""],
        "chrono.temperature.eta": ["0", "0.02", ""],
    }
    assert data_of(html)["within"] == ["model"]


def test_a_heat_map_has_a_cell_for_every_arm_beside_the_baselines(html: str):
    tables = re.findall(r'<table class="heat">(.*?)</table>', html, flags=re.DOTALL)
    cells = sorted(int(arm) for table in tables for arm in re.findall(r'data-arm="(\d+)"', table))
    baselines = [index for index, arm in enumerate(data_of(html)["arms"]) if arm["baseline"]]
    assert len(tables) == 2
    assert cells == [index for index in range(10) if index not in baselines]


def test_failed_points_stand_with_their_error_and_directory(html: str):
    table = re.search(r'<table class="points">.*?</table>', html)[0]
    assert "<nan>" not in table
    assert FAILURE in text_of(table)
    assert "failed after step 33" in text_of(table)
    assert re.search(r"runs/[0-9a-f]{12}", table)


def test_the_configs_differences_and_what_they_share(html: str):
    table = re.search(r'<table class="wide">.*?</table>', html)[0]
    heads = re.findall(r'<th scope="col">(.*?)</th>', table)
    assert {"Arm", "chrono.law", "chrono.pressure_scale", "model.dim"} <= set(heads)
    assert "seed" not in heads
    assert "data.source: stdlib" in text_of(html)


def test_text_from_runs_cannot_become_markup(tmp_path: Path):
    attack = "</script><script>alert(1)</script>"
    folder = write_sweep(tmp_path / "x", axes={"chrono.note": [attack, "b"]}, seeds=(1,), steps=40)
    for path in folder.glob("runs/*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["chrono"]["note"] = config["sweep"]["point"]
        config["data"]["source"] = attack
        path.write_text(yaml.safe_dump(config))
    html = html_of(folder, axis=["chrono"])
    assert "<script>alert" not in html
    assert html.count("</script>") == 3  # data, plotly.js, the page's own
    assert attack in text_of(html)


def test_a_block_with_nothing_to_say_is_absent(tmp_path: Path):
    folder = write_sweep(tmp_path / "plain", axes={"chrono.pressure_scale": ("0.1",)}, seeds=(1,), steps=40)
    for path in folder.glob("runs/*/routing.npz"):
        path.unlink()
    heads = re.findall(r"<h2>(.*?)</h2>", html_of(folder))
    assert heads == ["Verdicts", "Differences to the baseline", "Learning curves", "Coherence", "How the arms differ"]


def test_the_baseline_alone_has_a_page(tmp_path: Path):
    folder = write_sweep(tmp_path / "alone", axes={"chrono.pressure_scale": ()}, steps=40)
    assert "no arm has a pair with chrono=off" in html_of(folder)


def test_a_sweep_whose_baseline_is_not_done_yet_is_reported_with_its_points(tmp_path: Path):
    points = {f"chrono=off seed={seed}": "disk full" for seed in (1, 2, 3)}
    folder = write_sweep(tmp_path / "going", steps=40, failed=points)
    (path,) = report_sweep(folder, ReportSettings())
    text = text_of(path.read_text())
    assert "Nothing to compare yet: no run of the baseline chrono=off is finished." in text
    assert "15 done, 3 failed" in text
    assert text.count("disk full") == 3


def test_a_sweep_that_goes_on_is_reported_with_what_is_done(swept: Path, tmp_path: Path):
    folder = shutil.copytree(swept, tmp_path / "going")
    first, *_ = sorted(folder.glob("runs/*/summary.json"))
    first.unlink()
    text = text_of(html_of(folder))
    assert "28 done, 1 failed, 1 " in text


def test_a_folder_that_no_sweep_wrote_is_compared_along_the_control(swept: Path, tmp_path: Path):
    shutil.copytree(swept / "runs", tmp_path / "runs")
    for path in tmp_path.glob("runs/*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        del config["sweep"]
        path.write_text(yaml.safe_dump(config))
    html = html_of(tmp_path, within=["model"])
    assert '<select data-filter="law"' in html
    assert "chronovisor chrono.pressure_scale=0.05" in text_of(html)
