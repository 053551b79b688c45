"""Scaling: the active parameters stay, ratios are per token, and what does not divide is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from chronomoe.benchmark import scaling
from chronomoe.benchmark.settings import ScalingSettings
from chronomoe.benchmark.trainee import Timing
from chronomoe.model.sizing import size_of
from chronomoe.settings import InputError


def test_more_experts_leave_the_active_parameters_but_for_the_router() -> None:
    variants = scaling.expert_variants(ScalingSettings())
    sizes = {count: size_of(variant.config.model, variant.config.router) for count, variant in variants.items()}
    model = variants[8].config.model
    for count, size in sizes.items():
        assert size.active - sizes[8].active == (count - 8) * model.num_layers * model.dim
    assert sizes[64].stored > 4 * sizes[8].stored
    assert {variant.tokens for variant in variants.values()} == {2048}


def test_ratios_are_per_token_and_within_a_repeat() -> None:
    variants = scaling.token_variants(ScalingSettings(tokens=[512, 2048]))
    timings = {
        "512": [Timing(1.0, 0.0, 0.0), Timing(2.0, 0.0, 0.0)],
        "2048": [Timing(2.0, 0.0, 0.0), Timing(8.0, 0.0, 0.0)],
    }
    first, second = scaling.build_rows(variants, timings, {})
    assert first["ratio_to_first"]["median"] == 1.0
    assert second["ratio_to_first"] == {"median": 0.75, "min": 0.5, "max": 1.0}  # (2/2048)/(1/512), (8/2048)/(2/512)
    assert second["tokens_per_sec"]["max"] == 1024


def test_a_failed_variant_is_a_row_and_a_failed_reference_leaves_no_ratio() -> None:
    variants = scaling.token_variants(ScalingSettings(tokens=[512, 1024]))
    first, second = scaling.build_rows(variants, {"1024": [Timing(1.0, 0.0, 0.0)]}, {"512": "out of memory"})
    assert first["status"] == "failed"
    assert second["ratio_to_first"] is None
    assert "| failed | out of memory | - |" in scaling.table("tokens", [first, second])


def test_tokens_that_are_no_whole_sequences_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"tokens=600 is no whole number of sequences of seq_len=256: the nearest is 512"
    ):
        scaling.token_variants(ScalingSettings(tokens=[600]))


@pytest.mark.slow
def test_the_command_writes_numbers_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["experts=[4,8]", "tokens=[]", "model=mixtral_2x8", "overrides=[model.dim=32,model.vocab_size=64]"]
    small = ["batch_size=1", "seq_len=16", "repeats=2", "steps=1", "threads=1", f"output={tmp_path / 'deep'}"]
    monkeypatch.setattr(sys, "argv", ["scaling", *arguments, *small])
    scaling.main()
    result = json.loads((tmp_path / "deep" / "scaling.json").read_text())
    assert [row["value"] for row in result["experts"]] == [4, 8]
    assert all(row["status"] == "done" for row in result["experts"])
    assert (tmp_path / "deep" / "scaling.png").is_file()
