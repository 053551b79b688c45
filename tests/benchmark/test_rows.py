"""The arithmetic of the rows, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from chronomoe.benchmark.interleave import Measured
from chronomoe.benchmark.rows import add_paired_losses, build_rows, ratio, spread
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Report, Timing

OURS = System("chronomoe", "ours", "fp32", control=True)
SLOW, FAST = (System(name, "adapter", "fp32", peer=True) for name in ("slow", "fast"))
FLOOR = System("dense", "ours", "fp32", same_function=False)
OTHER_DTYPE = System("fast", "adapter", "bf16", peer=True)


def timings(*seconds: float) -> list[Timing]:
    return [Timing(each, 2 * each, each / 10) for each in seconds]


def report(above: int | None = None) -> Report:
    return Report(1000, above, 1e-6, 3.0, "a note")


def test_a_ratio_is_the_median_of_ratios_and_not_the_ratio_of_medians() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert ratio([1.0, 2.0, 8.0], [1.0, 4.0, 2.0]) == {"median": 1.0, "min": 0.5, "max": 4.0}


def test_a_row_by_hand() -> None:
    measured = Measured(
        {
            OURS.key: timings(0.5, 1.0, 2.0),
            SLOW.key: timings(4.0, 4.0, 4.0),
            FAST.key: timings(2.0, 1.0, 3.0),  # the best peer: its median is 2
            FLOOR.key: timings(0.1, 0.1, 0.1),  # faster than every peer, and none
            OTHER_DTYPE.key: timings(0.1, 0.1, 0.1),
        },
        {},
    )
    systems = [OURS, SLOW, FAST, FLOOR, OTHER_DTYPE]
    reports = {OURS.key: report(300), SLOW.key: report(200), FAST.key: report(400)}
    reports |= {FLOOR.key: report(100), OTHER_DTYPE.key: report(None)}
    flop = {OURS.key: 2_000_000}
    rows = build_rows(systems, measured, reports, tokens=100, flop=flop, limits={"fp32": 0.001, "bf16": 1.0})
    row = rows[0]
    assert row["tokens_per_sec"] == {"median": 100.0, "min": 50.0, "max": 200.0}
    assert row["best_peer"] == FAST.key
    assert row["ratio_to_best_peer"] == {"median": 1.5, "min": 1.0, "max": 4.0}  # 2/0.5, 1/1, 3/2
    assert row["cpu_seconds_per_step"] == 2.0
    assert row["control_share_of_step"] == pytest.approx(0.1)
    assert row["memory_ratio_to_best_peer"] == 1.5  # 300 over the leanest peer's 200
    assert row["share_of_limit"] == pytest.approx(0.2)  # 2 MFLOP x 100 /s of 1 GFLOP/s
    assert rows[2]["ratio_to_best_peer"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert rows[3]["share_of_limit"] is None
    assert rows[4]["memory_ratio_to_best_peer"] is None


def test_a_failed_peer_is_no_peer_and_its_row_says_why() -> None:
    measured = Measured({OURS.key: timings(1.0), SLOW.key: timings(2.0)}, {FAST.key: "the process died, exit code 1"})
    reports = {OURS.key: report(), SLOW.key: report()}
    rows = build_rows([OURS, SLOW, FAST], measured, reports, tokens=1, flop={}, limits={"fp32": 1.0})
    assert rows[0]["best_peer"] == SLOW.key
    assert rows[2] == {
        "key": "fast_fp32",
        "system": "fast",
        "dtype": "fp32",
        "control": None,
        "status": "failed",
        "error": "the process died, exit code 1",
    }


def test_a_peer_of_another_function_may_be_the_best_but_not_the_best_equal() -> None:
    other = System("other", "adapter", "fp32", peer=True, same_function=False)
    seconds = {OURS: timings(1.0, 1.0), SLOW: timings(4.0, 2.0), other: timings(0.5, 0.5)}
    measured = Measured({system.key: found for system, found in seconds.items()}, {})
    reports = {system.key: report() for system in seconds}
    row = build_rows(list(seconds), measured, reports, tokens=1, flop={}, limits={"fp32": 1.0})[0]
    assert (row["best_peer"], row["ratio_to_best_peer"]["median"]) == (other.key, 0.5)
    assert (row["best_equal_peer"], row["ratio_to_best_equal_peer"]["median"]) == (SLOW.key, 3.0)


def test_without_peers_there_is_no_ratio() -> None:
    measured = Measured({OURS.key: timings(1.0)}, {})
    (row,) = build_rows([OURS], measured, {OURS.key: report()}, tokens=1, flop={}, limits={"fp32": 1.0})
    assert row["ratio_to_best_peer"] is row["memory_ratio_to_best_peer"] is None


def test_paired_losses_are_compared_with_ours_in_fp32_without_control() -> None:
    rows: list[dict] = [{"key": key} for key in ("chronomoe_fp32_on", "chronomoe_fp32_off", "litgpt_bf16", "failed")]
    add_paired_losses(rows, {"chronomoe_fp32_on": 2.5, "chronomoe_fp32_off": 2.0, "litgpt_bf16": 1.5})
    assert [row.get("paired_difference") for row in rows] == [0.5, 0.0, -0.5, None]
    assert "loss_after_paired_steps" not in rows[3]
