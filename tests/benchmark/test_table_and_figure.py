"""The table and the pictures of rows that are done, failed, or have no peer."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image

from chronomoe.benchmark.figure import draw_benchmark, draw_breakdown, draw_scaling
from chronomoe.benchmark.interleave import Measured
from chronomoe.benchmark.parts import PARTS
from chronomoe.benchmark.rows import Row, add_paired_losses, build_rows
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.table import HEAD, benchmark_table, breakdown_table, remarks
from chronomoe.benchmark.trainee import Report, Timing


def rows() -> list[Row]:
    ours = System("chronomoe", "ours", "fp32", control=True)
    peer, failed = System("peer", "adapter", "fp32", peer=True), System("failed", "adapter", "bf16", peer=True)
    measured = Measured(
        {ours.key: [Timing(0.5, 1.0, 0.01)], peer.key: [Timing(1.0, 2.0, 0.0)]}, {failed.key: "the process died"}
    )
    reports = {ours.key: Report(2_000_000, None, 1e-6, 3.0, ""), peer.key: Report(None, None, None, 3.0, "a note")}
    found = build_rows(
        [ours, peer, failed], measured, reports, tokens=100, flop={ours.key: 1000}, limits={"fp32": 1.0, "bf16": 1.0}
    )
    add_paired_losses(found, {ours.key: 2.5, peer.key: 2.75})
    return found


def test_every_line_of_the_table_has_every_column() -> None:
    lines = benchmark_table(rows()).splitlines()
    assert len(lines) == 2 + 3
    assert {line.count(" | ") for line in lines} == {len(HEAD)}  # one column more: the paired loss
    assert "| 200 (200–200) | 2.00 (2.00–2.00) | 2.00 (2.00–2.00) | 1.00 | 2 (-) |" in lines[2]
    assert "2.7500 (+0.2500)" in lines[3]
    assert "failed" in lines[4]


def test_failures_and_notes_stand_below_the_table() -> None:
    result = {"rows": rows(), "not_installed": ["litgpt"], "limit_tflops": {"fp32": 1.0}, "copy_gb_per_sec": 40.0}
    text = "\n".join(remarks(result))
    assert "failed_bf16: the process died" in text
    assert "peer_fp32: a note" in text
    assert "not installed, left out: litgpt" in text
    assert "controller and metrics, fp32: 2.0% of a step" in text


def test_shares_of_the_breakdown_are_a_line_a_part() -> None:
    shares = {"chronomoe_fp32_on": {name: 1 / len(PARTS) for name in PARTS}}
    assert breakdown_table(shares).count("12.5%") == len(PARTS) == 8


def test_pictures_show_something(tmp_path: Path) -> None:
    spread = {"median": 1.0, "min": 0.9, "max": 1.2}
    shares = {"chronomoe_fp32_on": {name: 1 / len(PARTS) for name in PARTS}}
    scaled = {"experts": [{"value": 8, "ratio_to_first": spread}, {"value": 16, "status": "failed"}]}
    paths = [
        draw_benchmark(rows(), {"fp32": 400.0, "bf16": 900.0}, tmp_path / "benchmark.png"),
        draw_breakdown(shares, tmp_path / "breakdown.png"),
        draw_scaling(scaled, tmp_path / "scaling.png"),
    ]
    for path in paths:
        assert matplotlib.image.imread(path).std() > 0.01
