"""The rows as a table in Markdown, and the lines below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chronomoe.benchmark.parts import PARTS
from chronomoe.benchmark.rows import Row

MISSING = "-"
HEAD = (
    "system",
    "dtype",
    "control",
    "tokens/s, median (range)",
    "against best peer",
    "against best peer of the same function",
    "CPU s/step",
    "peak memory, MB (above imports)",
    "against leanest peer",
    "of GEMM limit",
    "logits differ by",
)


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines))


def show(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def show_spread(values: Mapping[str, float] | None, form: str) -> str:
    if values is None:
        return MISSING
    return f"{values['median']:{form}} ({values['min']:{form}}–{values['max']:{form}})"


def megabytes(count: int | None) -> str:
    return MISSING if count is None else f"{count / 1e6:,.0f}"


def benchmark_table(rows: Sequence[Row]) -> str:
    paired = any("loss_after_paired_steps" in row for row in rows)
    head = [*HEAD, "loss after paired steps (difference)"] if paired else HEAD
    return markdown(head, [cells_of(row, paired) for row in rows])


def cells_of(row: Row, paired: bool) -> list[str]:
    cells = [row["system"], row["dtype"], {None: MISSING, True: "on", False: "off"}[row["control"]]]
    if row["status"] == "failed":
        return [*cells, "failed", *[MISSING] * (len(HEAD) - len(cells) - 1 + paired)]
    cells += [
        show_spread(row["tokens_per_sec"], ",.0f"),
        show_spread(row["ratio_to_best_peer"], ".2f"),
        show_spread(row["ratio_to_best_equal_peer"], ".2f"),
        show(row["cpu_seconds_per_step"], ".2f"),
        f"{megabytes(row['peak_memory_bytes'])} ({megabytes(row['peak_memory_above_imports_bytes'])})",
        show(row["memory_ratio_to_best_peer"], ".2f"),
        show(row["share_of_limit"], ".0%"),
        show(row["logit_difference"], ".0e"),
    ]
    if paired:
        difference = show(row.get("paired_difference"), "+.4f")
        cells.append(f"{show(row.get('loss_after_paired_steps'), '.4f')} ({difference})")
    return cells


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What the table has no column for: failures, notes, limits, the cost of control."""
    lines = [f"{row['key']}: {row['error']}" for row in result["rows"] if row["status"] == "failed"]
    lines += [f"{row['key']}: {row['note']}" for row in result["rows"] if row.get("note")]
    lines += [f"not installed, left out: {name}" for name in result["not_installed"]]
    lines += [f"GEMM limit, {dtype}: {limit:.2f} TFLOP/s" for dtype, limit in result["limit_tflops"].items()]
    lines.append(f"copy: {result['copy_gb_per_sec']:.1f} GB/s read and written")
    lines += [
        f"controller and metrics, {row['dtype']}: {row['control_share_of_step']:.1%} of a step"
        for row in result["rows"]
        if "control_share_of_step" in row
    ]
    return lines


def breakdown_table(breakdown: Mapping[str, Mapping[str, float]]) -> str:
    """Shares of the step, a column a system."""
    lines = [[name, *(f"{shares[name]:.1%}" for shares in breakdown.values())] for name in PARTS]
    return markdown(["part of a step", *breakdown], lines)
