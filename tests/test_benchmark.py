"""`python -m chronomoe.benchmark`: what it measures is the same work on both sides, and what it writes is complete."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from chronomoe import benchmark
from chronomoe.config import compose_config
from chronomoe.model.lm import LanguageModel


@pytest.mark.slow
def test_benchmark_writes_a_row_for_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    output = tmp_path / "deep" / "benchmark.json"
    arguments = ["batch_size=1", "seq_len=16", "repeats=1", "steps=1", f"output={output}"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark.main()
    result = json.loads(output.read_text())
    rows = {(row["system"], row["dtype"], row["control"]) for row in result["rows"]}
    ours = {("chronomoe", dtype, control) for dtype in ("fp32", "bf16") for control in (True, False)}
    peers = {(f"transformers {b}", dtype, None) for b in ("eager", "grouped_mm") for dtype in ("fp32", "bf16")}
    assert rows == ours | peers
    best = [row["ratio_to_best_peer"] for row in result["rows"] if row["control"] is None]
    assert best.count(1.0) == 2  # the best peer of each dtype against itself
    assert all(row["tokens_per_sec"]["median"] > 0 for row in result["rows"])


def test_flop_per_token_counts_every_matrix_product_once() -> None:
    config = compose_config(["model=mixtral_2x8"])
    model = LanguageModel(config.model, config.router)
    m, seq_len = config.model, 128
    head_dim = m.dim // m.num_heads
    attention = m.dim * (m.num_heads + 2 * m.num_kv_heads) * head_dim + m.num_heads * head_dim * m.dim
    layer = attention + m.dim * m.num_experts + config.router.top_k * 3 * m.dim * m.hidden_dim
    scores = 2 * m.num_layers * seq_len * m.dim  # q k^T and p v, over half of the positions on average
    expected = 3 * (2 * (m.num_layers * layer + m.dim * m.vocab_size) + scores)
    norms = 3 * 2 * m.dim * (2 * m.num_layers + 1)  # the formula counts their weights as products; they are nothing
    assert benchmark.flop_per_token(model, config, seq_len) - norms == expected


def test_a_controlled_step_moves_the_field_and_clears_the_sensor() -> None:
    config = compose_config(["model=mixtral_2x8", "chrono=chronovisor"])
    model = LanguageModel(config.model, config.router).train()
    step = benchmark.controlled(model, config)
    model(torch.randint(config.model.vocab_size, (1, 16)))
    step()
    assert model.expert_bias_LE.abs().max() > 0
    assert not model.sensor_LEC.any()
