"""The tutorial runs as it stands, in a folder of its own, and leaves what it says; what is committed has no output."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import PROJECT

NOTEBOOK = PROJECT / "docs" / "tutorial.ipynb"


def read() -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = read()
    assert len(code_cells(notebook)) > 8
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/home/" not in text
    assert "/tmp/" not in text


def test_its_links_lead_to_pages_of_the_documentation() -> None:
    pages = {name for cell in read().cells for name in re.findall(r"\]\((\w+\.md)\)", cell.source)}
    assert pages >= {"laws.md", "metrics.md", "sweeps.md", "dashboards.md"}
    assert all((NOTEBOOK.parent / page).is_file() for page in pages)


@pytest.mark.slow
def test_the_tutorial_runs_from_training_to_the_report_of_a_sweep(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("optuna")
    notebook = read()
    (parameters,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f'STEPS, SCALES, SEEDS, OVERRIDES = 8, "0.5", "1,2", {[*tiny, "trainer.autotune=false"]!r}'
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    out = tmp_path / "outputs" / "tutorial"
    for name in ("chronovisor", "off", "strong", "quantile"):
        summary = json.loads((out / name / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("done", 8)
    sweep = out / "sweeps" / "pressure_scale"
    with (sweep / "results.csv").open(newline="") as file:
        points = {row["overrides"]: row["status"] for row in csv.DictReader(file)}
    assert points == {
        f"{arm} seed={seed}": "done" for arm in ("chrono=off", "chrono.pressure_scale=0.5") for seed in (1, 2)
    }
    assert {"val_loss", "verdicts"} <= json.loads((sweep / "compare.json").read_text()).keys()
    assert "<html" in (sweep / "report.html").read_text(encoding="utf-8")
    shown = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4  # two figures, curves, the comparison
    printed = "".join(output.text for output in shown if output.output_type == "stream")
    assert "[4/4]" in printed  # a line a point, not a table that is drawn again and again
    assert "def main():" in printed
