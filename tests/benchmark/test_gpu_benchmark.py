"""The GPU benchmark: what it computes, and that every part runs end to end in miniature on a processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chronomoe.benchmark.gpu_imbalance import band_of, draw, recovery_steps
from chronomoe.benchmark.gpu_inference import foretold_bytes
from chronomoe.benchmark.gpu_training import nominal_tflops, shapes
from chronomoe.config import compose_config
from chronomoe.model.sizing import size_of

ROOT = Path(__file__).parents[2]
PARTS = ["S1", "mixtral_8x7b", "imbalance", "lengths"]


@pytest.mark.parametrize("name", shapes())
def test_every_shape_composes_at_full_size_and_trains_within_141_gb(name: str) -> None:
    config = shapes()[name].compose(tiny=False)
    assert size_of(config.model, config.router).stored * 18 < 0.8 * 141e9


def test_a_hot_step_draws_most_tokens_from_one_band_and_a_calm_one_does_not() -> None:
    for step, hot in ((0, False), (3, False), (4, True), (5, True), (6, False)):
        ids_BS = draw("burst", step, 16, (4, 256), 6400)
        assert (float((ids_BS < 100).float().mean()) > 0.8) is hot
    assert [band_of("rotating", step, 16) for step in (3, 4, 5, 6, 8)] == [None, 0, 0, 1, 2]
    assert torch.equal(draw("hot", 7, 16, (2, 8), 64), draw("hot", 7, 16, (2, 8), 64))


@pytest.mark.parametrize(
    ("after", "steps"), [([5.0, 4.0, 2.9, 1.0], 2), ([3.0, 5.0, 3.1, 2.0], 3), ([5.0, 5.0], None), ([0.5, 1.0], 0)]
)
def test_recovery_is_when_half_of_what_a_disturbance_added_is_gone(after: list[float], steps: int | None) -> None:
    assert recovery_steps([1.0] * 5 + after, 5) == steps


def test_mixtral_8x7b_is_foretold_to_weigh_what_its_parameters_and_cache_do() -> None:
    config = compose_config(["model=mixtral_8x7b"])
    assert foretold_bytes(config, 0) == 2 * 46_702_792_704
    assert foretold_bytes(config, 1) - foretold_bytes(config, 0) == 2 * 32 * 2 * 8 * 128


def test_the_nominal_rate_is_known_by_a_word_of_the_name_and_else_not_invented() -> None:
    assert nominal_tflops("NVIDIA H200") == 989.0
    assert nominal_tflops("cpu") is None


def run_script(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(ROOT / "scripts/gpu_benchmark.py"), "repeats=1", f"output={output}", *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_every_kind_of_part_runs_in_miniature(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ended = run_script(tmp_path, "tiny=true", f"parts={','.join(PARTS)}", "limit_s=500")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part.get("error") for name, part in found.items()} == dict.fromkeys(PARTS)
    assert ended.returncode == 0
    assert found["mixtral_8x7b"]["largest_logit_difference"] < 0.05
    assert found["mixtral_8x7b"]["telemetry"]["tokens_per_sec"] > 0
    assert {row["system"] for row in found["S1"]["rows"]} == {"chronomoe", "transformers grouped_mm"}
    assert {row["workload"] for row in found["imbalance"]["rows"]} == {"even", "hot", "rotating", "burst"}
    for name in ("S1", "imbalance", "lengths"):
        assert (tmp_path / f"{name}.png").is_file()


@pytest.mark.slow
def test_a_part_out_of_time_is_reported_and_the_next_is_not_begun(tmp_path: Path) -> None:
    ended = run_script(tmp_path, "tiny=true", "parts=imbalance,lengths", "limit_s=2")
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert ended.returncode == 1
    assert found["imbalance"]["status"] == "out of time"
    assert found["lengths"]["status"] == "not begun"


def test_without_a_gpu_only_miniatures_are_run_and_a_wrong_part_is_named(tmp_path: Path) -> None:
    wrong = run_script(tmp_path, "parts=S9")
    assert wrong.returncode == 2
    assert "parts=S9 does not exist: there are S1" in wrong.stderr
    assert "add tiny=true" in run_script(tmp_path).stderr
