from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from chronomoe.report import ReportSettings, compare, open_runs
from chronomoe.study.sweep_figures import draw_sweep
from chronomoe.study.sweep_report import Sweep

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def written(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("figures")
    return draw_sweep(Sweep.read("made", folder, compare(open_runs(swept), swept, ReportSettings())))


def test_every_figure_is_written_as_png_and_as_svg(written: list[Path]):
    names = [
        "differences", "heat_map", "validation-loss", "loss-difference", "training-loss", "coherence", "max-vio",
        "usage", "lens", "lens-path", "specialisation",
    ]  # fmt: skip
    assert [path.name for path in written] == [f"{name}.{ending}" for name in names for ending in ("png", "svg")]
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_text_of_an_svg_is_text(written: list[Path]):
    for path in written:
        if path.suffix == ".svg":
            root = ElementTree.parse(path).getroot()
            text = " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))
            assert root.tag == f"{SVG}svg"
            assert "sweep made" in text, path.name
    heat_map = next(path for path in written if path.name == "heat_map.svg").read_text()
    assert "chrono.temperature.eta" in heat_map
    assert "model=switch_2x8" in heat_map
