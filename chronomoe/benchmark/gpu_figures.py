"""Figures of a GPU run: speed of every shape, imbalance against speed, time per token against length.

Drawn with matplotlib's object interface: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chronomoe.benchmark.figure import draw_benchmark, frame, new_figure
from chronomoe.study.figures import DPI
from chronomoe.study.palette import EXPERTS


def draw(parts: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """The figures of what was measured; returns their files."""
    written = []
    for name, part in parts.items():
        rows = part.get("rows", [])
        if "limit_tflops" in part and any(row["status"] == "done" for row in rows):
            limits = {d: limit * 1e12 / part["training_flop_per_token"] for d, limit in part["limit_tflops"].items()}
            written.append(draw_benchmark(rows, limits, folder / f"{name}.png"))
        elif name == "imbalance" and rows:
            written.append(draw_imbalance(rows, folder / "imbalance.png"))
        elif name == "lengths" and rows:
            written.append(draw_lengths(rows, folder / "lengths.png"))
    return written


def draw_imbalance(rows: list[dict[str, Any]], path: Path) -> Path:
    """A point a run: tokens per second against its mean MaxVio, a colour a law."""
    figure = new_figure(3.8)
    axes = figure.add_subplot()
    laws = list(dict.fromkeys(row["law"] for row in rows))
    for law, colour in zip(laws, EXPERTS, strict=False):
        chosen = [row for row in rows if row["law"] == law]
        axes.scatter([r["max_vio"] for r in chosen], [r["tokens_per_sec"] for r in chosen], color=colour, label=law)
    axes.set_ylim(0, None)
    axes.set_xlabel("MaxVio, mean over layers and steps")
    axes.set_title("tokens per second", fontsize=10, loc="left")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    frame(axes)
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
    return path


def draw_lengths(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel for reading and one for training, a line a model."""
    figure = new_figure(3.6)
    for axes, what in zip(figure.subplots(1, 2), ("reading", "training"), strict=True):
        for name, colour in zip(dict.fromkeys(row["model"] for row in rows), EXPERTS, strict=False):
            chosen = [r for r in rows if (r["what"], r["model"]) == (what, name) and "error" not in r]
            xs, ys = [r["tokens"] for r in chosen], [r["microseconds_per_token"] for r in chosen]
            axes.plot(xs, ys, marker="o", color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, None)
        axes.set_xlabel("tokens of a text")
        axes.set_title(f"{what}: µs a token", fontsize=10, loc="left")
        frame(axes)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
    return path
