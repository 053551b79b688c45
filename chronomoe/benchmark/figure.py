"""`benchmark.png`: tokens per second of every system, with ranges and the limit; `breakdown.png`: where our step goes;
`scaling.png`: step times against the number of experts and of tokens.

Drawn with matplotlib's object interface: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomoe.benchmark.parts import PARTS
from chronomoe.benchmark.rows import Row
from chronomoe.study.figures import DPI, WIDTH
from chronomoe.study.palette import BLACK, BLUE, EXPERTS, ORANGE, PALE_GREY, SLATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_COLOURS = dict(zip(PARTS, [*EXPERTS[:6], EXPERTS[7], PALE_GREY], strict=True))


def new_figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(PALE_GREY)
    axes.tick_params(colors=SLATE, labelsize=9)


def draw_benchmark(rows: Sequence[Row], limits: Mapping[str, float], path: Path) -> Path:
    """One panel a dtype. `limits`: tokens per second at the GEMM limit, by dtype."""
    done = [row for row in rows if row["status"] == "done"]
    dtypes = [dtype for dtype in limits if any(row["dtype"] == dtype for row in done)]
    shown = {dtype: [row for row in done if row["dtype"] == dtype] for dtype in dtypes}
    heights = [len(panel) + 1.5 for panel in shown.values()]
    figure = new_figure(0.32 * sum(heights) + 1.2)
    figure.suptitle("Training speed on the same weights and tokens: median of the repeats and their range", fontsize=11)
    grid = figure.subplots(len(dtypes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, dtype in zip(grid, dtypes, strict=True):
        draw_rates(axes, shown[dtype], limits[dtype], dtype)
    if len(grid):
        grid[-1].set_xlabel("tokens per second")
    figure.savefig(path, dpi=DPI)
    return path


def draw_rates(axes: Axes, rows: Sequence[Row], limit: float, dtype: str) -> None:
    rates = [row["tokens_per_sec"] for row in rows]
    medians = [rate["median"] for rate in rates]
    ranges = [
        [median - rate["min"] for median, rate in zip(medians, rates, strict=True)],
        [rate["max"] - median for median, rate in zip(medians, rates, strict=True)],
    ]
    places = range(len(rows))
    axes.barh(places, medians, color=[colour_of(row) for row in rows], height=0.7)
    axes.errorbar(medians, places, xerr=ranges, fmt="none", ecolor=BLACK, elinewidth=1, capsize=2)
    axes.axvline(limit, color=BLACK, linestyle="--", linewidth=1)
    axes.annotate("GEMM limit ", (limit, -0.9), fontsize=8, ha="right", va="center")
    axes.set_ylim(len(rows) - 0.4, -1.3)
    axes.set_yticks(places, [label_of(row) for row in rows])
    axes.set_title(dtype, fontsize=10, loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    frame(axes)


def colour_of(row: Row) -> str:
    """Ours, the floor, and everybody else."""
    return {"chronomoe": BLUE, "dense": PALE_GREY}.get(row["system"], ORANGE)


def label_of(row: Row) -> str:
    control = {None: "", True: ", control on", False: ", control off"}[row["control"]]
    return f"{row['system']}{control}"


def draw_breakdown(breakdown: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    """One stacked bar a system, of the shares of its step."""
    figure = new_figure(0.5 * len(breakdown) + 1.6)
    axes = figure.add_subplot()
    left = [0.0] * len(breakdown)
    for name in PARTS:
        shares = [shares[name] for shares in breakdown.values()]
        bars: Any = axes.barh(range(len(breakdown)), shares, left=left, color=PART_COLOURS[name], label=name)
        ink = "black" if name in ("attention", "head and loss", "rest") else "white"
        axes.bar_label(bars, [f"{s:.0%}" if s >= 0.04 else "" for s in shares], label_type="center", color=ink)
        left = [begun + share for begun, share in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(breakdown)), list(breakdown))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set_xlabel("share of a training step")
    frame(axes)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)
    return path


def draw_scaling(rows: Mapping[str, Sequence[Row]], path: Path) -> Path:
    """One panel a part: seconds per token against the first variant, with their ranges."""
    figure = new_figure(3.6)
    figure.suptitle("Seconds per token against the first variant: median of the repeats and their range", fontsize=11)
    labels = {"experts": "experts per layer, equal active parameters", "tokens": "tokens per step"}
    for axes, (name, found) in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows.items(), strict=True):
        done = [row for row in found if row.get("ratio_to_first")]
        ratios = [row["ratio_to_first"] for row in done]
        medians = [each["median"] for each in ratios]
        ranges = [[each["median"] - each["min"] for each in ratios], [each["max"] - each["median"] for each in ratios]]
        values = [row["value"] for row in done]
        axes.errorbar(values, medians, yerr=ranges, color=BLUE, marker="o", capsize=3)
        axes.axhline(1, color=BLACK, linestyle="--", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.set_ylim(0, None)
        axes.set_xlabel(labels[name])
        frame(axes)
    figure.savefig(path, dpi=DPI)
    return path
