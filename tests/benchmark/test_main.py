"""`python -m chronomoe.benchmark`: what it measures is the same work on both sides, and what it writes is complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chronomoe.benchmark import __main__ as benchmark
from chronomoe.settings import InputError

SMALL = ["model=mixtral_2x8", "batch_size=1", "seq_len=16", "repeats=2", "steps=1", "warmup_steps=1", "threads=1"]


@pytest.mark.slow
def test_the_command_writes_a_row_for_every_system_and_one_that_fails_stops_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another gate transformers computes another function, so its process must refuse."""
    pytest.importorskip("transformers")
    output = tmp_path / "deep"
    arguments = [
        "systems=[chronomoe_bf16_on,transformers_eager_bf16,dense_bf16]",
        "paired_steps=3",
        "breakdown_steps=1",
    ]
    overrides = "overrides=[model.dim=32,model.vocab_size=64,model.init_std=0.3,router.gate=softmax]"
    monkeypatch.setattr(sys, "argv", ["benchmark", *SMALL, *arguments, overrides, f"output={output}"])
    benchmark.main()
    result = json.loads((output / "benchmark.json").read_text())
    rows = {row["key"]: row for row in result["rows"]}
    assert set(rows) == {"chronomoe_bf16_on", "transformers_eager_bf16", "dense_bf16"}
    assert rows["transformers_eager_bf16"]["status"] == "failed"
    assert "its logits differ from the reference" in rows["transformers_eager_bf16"]["error"]
    for key in ("chronomoe_bf16_on", "dense_bf16"):
        assert rows[key]["tokens_per_sec"]["median"] > 0
        assert rows[key]["loss_after_paired_steps"] > 0
    assert sum(result["breakdown"]["chronomoe_bf16_on"].values()) == pytest.approx(1.0)
    assert result["machine"]["threads"] == 1
    assert result["limit_tflops"]["bf16"] > 0
    assert (output / "benchmark.png").is_file()
    assert (output / "breakdown.png").is_file()
    assert "| transformers eager | bf16 | - | failed |" in capsys.readouterr().out


@pytest.mark.slow
def test_two_systems_of_one_function_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    systems = "systems=[chronomoe_fp32_off,transformers_grouped_mm_fp32]"
    overrides = "overrides=[model.dim=32,model.vocab_size=64]"
    monkeypatch.setattr(sys, "argv", ["benchmark", *SMALL, systems, overrides, f"output={tmp_path}"])
    benchmark.main()
    ours, theirs = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert theirs["ratio_to_best_peer"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert ours["best_peer"] == theirs["key"]
    assert ours["ratio_to_best_peer"]["median"] > 0
    assert max(ours["logit_difference"], theirs["logit_difference"]) < 1e-4


def test_help_lists_the_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 0
    assert "paired_steps: 0" in capsys.readouterr().out


def test_sequences_longer_than_the_model_allows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "seq_len=5000", "systems=[chronomoe]", f"output={tmp_path}"])
    with pytest.raises(InputError, match=r"seq_len=5000 exceeds model\.max_seq_len=1024"):
        benchmark.main()
