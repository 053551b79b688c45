"""`python -m chronomoe.compare` on the folders of a small multirun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chronomoe import compare
from chronomoe.settings import InputError

LOSSES = {("off", 1): 4.0, ("off", 2): 5.0, ("chronovisor", 1): 3.9, ("chronovisor", 2): 5.1}


@pytest.fixture
def multirun(tmp_path: Path) -> Path:
    for number, ((law, seed), loss) in enumerate(LOSSES.items()):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        (run_dir / "config.yaml").write_text(f"chrono: {{law: '{law}'}}\nseed: {seed}\n")
        (run_dir / "summary.json").write_text(json.dumps({"status": "done", "val_loss": loss}))
    return tmp_path


def test_arms_are_compared_within_seeds(
    multirun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", f"runs={multirun}"])
    compare.main()
    saved = json.loads((multirun / "compare.json").read_text())["val_loss"]["chronovisor"]
    assert saved["n"] == 2
    assert saved["mean_difference"] == pytest.approx(0.0)
    assert saved["wins"] == 1
    printed = capsys.readouterr().out
    assert "| chronovisor (2) | 4.5 (" in printed
    assert "Fewer than 5 pairs" in printed


def test_an_unfinished_run_is_left_out(multirun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (multirun / "3" / "summary.json").write_text(json.dumps({"status": "failed", "val_loss": None}))
    monkeypatch.setattr(sys, "argv", ["compare", f"runs={multirun}"])
    compare.main()
    assert json.loads((multirun / "compare.json").read_text())["val_loss"]["chronovisor"]["n"] == 1


def test_an_unknown_baseline_lists_the_arms(multirun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", f"runs={multirun}", "baseline=sign"])
    with pytest.raises(InputError, match=r"baseline=sign is no arm .*: there are off, chronovisor"):
        compare.main()
