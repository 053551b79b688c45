"""From timings to numbers: medians with their ranges; ratios are formed within a repeat before their median."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from chronomoe.benchmark.interleave import Measured
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.trainee import Report, Timing

Row = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(dividend: Sequence[float], divisor: Sequence[float]) -> dict[str, float]:
    """Of two systems' values in the same repeats."""
    return spread([a / b for a, b in zip(dividend, divisor, strict=True)])


def seconds_of(timings: Sequence[Timing]) -> list[float]:
    return [timing.seconds for timing in timings]


def build_rows(
    systems: Sequence[System],
    measured: Measured,
    reports: Mapping[str, Report],
    *,
    tokens: int,
    flop: Mapping[str, int],
    limits: Mapping[str, float],
) -> list[Row]:
    """One row a system, those that failed too. `tokens` per step; `flop` per token by key, where that is known;
    `limits` in TFLOP/s by dtype. An equal peer computes our function, which not every peer does."""
    rows = []
    for system in systems:
        row: Row = {"key": system.key, "system": system.name, "dtype": system.dtype, "control": system.control}
        if system.key in measured.errors:
            rows.append(row | {"status": "failed", "error": measured.errors[system.key]})
            continue
        timings, report = measured.timings[system.key], reports[system.key]
        peers = [s for s in systems if s.peer and s.dtype == system.dtype and s.key not in measured.errors]
        rate = spread([tokens / timing.seconds for timing in timings])
        work = flop.get(system.key)
        row |= {
            "status": "done",
            "tokens_per_sec": rate,
            "seconds_per_step": spread(seconds_of(timings)),
            "cpu_seconds_per_step": statistics.median(timing.cpu_seconds for timing in timings),
            "ratio_to_best_peer": None,
            "ratio_to_best_equal_peer": None,
            "peak_memory_bytes": report.peak_memory_bytes,
            "peak_memory_above_imports_bytes": report.peak_memory_above_imports_bytes,
            "memory_ratio_to_best_peer": None,
            "share_of_limit": None if work is None else work * rate["median"] / 1e12 / limits[system.dtype],
            "logit_difference": report.logit_difference,
            "loss": report.loss,
            "note": report.note,
        }
        if system.control:
            row["control_share_of_step"] = statistics.median(t.control_seconds / t.seconds for t in timings)
        if peers:
            row["best_peer"], row["ratio_to_best_peer"] = ratio_to_best(timings, measured, peers)
            row["memory_ratio_to_best_peer"] = memory_ratio(report, [reports[peer.key] for peer in peers])
        equal = [peer for peer in peers if peer.same_function]
        if equal:
            row["best_equal_peer"], row["ratio_to_best_equal_peer"] = ratio_to_best(timings, measured, equal)
        rows.append(row)
    return rows


def ratio_to_best(
    timings: Sequence[Timing], measured: Measured, peers: Sequence[System]
) -> tuple[str, dict[str, float]]:
    """The fastest of `peers` by its median, and its seconds over these: above 1 is faster than it."""
    seconds = {peer.key: seconds_of(measured.timings[peer.key]) for peer in peers}
    best = min(seconds, key=lambda key: statistics.median(seconds[key]))
    return best, ratio(seconds[best], seconds_of(timings))


def memory_ratio(report: Report, peers: Sequence[Report]) -> float | None:
    """Peak above imports, over that of the peer that needs least."""
    theirs = [p.peak_memory_above_imports_bytes for p in peers if p.peak_memory_above_imports_bytes]
    mine = report.peak_memory_above_imports_bytes
    return mine / min(theirs) if mine and theirs else None


def add_paired_losses(rows: Sequence[Row], losses: Mapping[str, float]) -> None:
    """Each row's loss after the paired steps, and its difference to chronomoe in fp32, without control if both ran."""
    references = [key for key in ("chronomoe_fp32_off", "chronomoe_fp32_on") if key in losses]
    for row in rows:
        if row["key"] in losses:
            row["loss_after_paired_steps"] = losses[row["key"]]
            row["paired_difference"] = losses[row["key"]] - losses[references[0]] if references else None
