"""The figures of one run as PNG files, drawn with matplotlib's object interface (no window, no global state).

| file | shows |
|---|---|
| `loss.png` | training and validation loss against step, with the unigram model's loss |
| `coherence.png` | coherence of every MoE layer against step, with the training loss on a second axis |
| `usage.png` | utilisation of every expert over time, one panel a layer |
| `layers.png` | utilisation of every expert in every layer, over the last records |
| `phi.png` | agreement of the experts' outputs, now and in three memories, where it was measured |
| `control.png` | lens, pressure and bias of every expert over time, one row a layer |

A figure whose record is missing is not drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomoe.study import findings
from chronomoe.study.palette import (
    BLACK,
    BLUE,
    EXPERTS,
    PALE_BLUE,
    PALE_GREY,
    SLATE,
    VERMILION,
    expert_colours,
    utilisation_scale,
)
from chronomoe.study.run import Curve, Routing, Run
from chronomoe.study.series import pool_counts, smooth, smoothing_window, thin_indices, utilisation, utilisation_top

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

DPI = 150
WIDTH = 7.6  # inches: 1140 pixels, about what a README shows
USAGE_BINS = 300
CONTROL_POINTS = 600
MAX_CONTROL_LAYERS = 6
LATE_RECORDS = 50
STEP_LABEL = "optimizer step"


def draw_run(run: Run) -> list[Path]:
    """Write every figure the run has records for to `figures/`; returns the files."""
    folder = run.directory / "figures"
    folder.mkdir(exist_ok=True)
    drawings = {
        "loss": draw_loss,
        "coherence": draw_coherence,
        "usage": draw_usage,
        "layers": draw_layers,
        "control": draw_control,
        "phi": draw_phi,
    }
    written = []
    for name, draw in drawings.items():
        figure = draw(run)
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=DPI)
    return written


def draw_loss(run: Run) -> Figure | None:
    train, val = run.curve("train/loss"), run.curve("val/loss")
    if not len(train.step) and not len(val.step):
        return None
    figure = new_figure(4.2, findings.loss(run), run)
    axes = figure.add_subplot()
    plot_train_loss(axes, train)
    if len(val.step):
        axes.plot(val.step, val.value, color=VERMILION, marker="o", markersize=4.5, label="validation loss")
    unigram = findings.unigram_loss(run)
    if unigram is not None:
        axes.axhline(unigram, color=BLACK, linewidth=1, linestyle="--", label=f"unigram model's loss ({unigram:.2f})")
    polish(axes)
    axes.set_xlabel(STEP_LABEL)
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    return figure


def draw_coherence(run: Run) -> Figure | None:
    mean, train = run.curve("chrono/coherence"), run.curve("train/loss")
    if not len(mean.step):
        return None
    figure = new_figure(4.2, findings.coherence(run), run)
    axes = figure.add_subplot()
    for layer, curve in enumerate(findings.coherence_by_layer(run)):
        axes.plot(*curve, color=PALE_GREY, linewidth=0.9, label="coherence, each layer" if layer == 0 else None)
    axes.plot(mean.step, mean.value, color=VERMILION, label="coherence, mean of layers", **dot_if_short(mean))
    polish(axes)
    axes.set_xlabel(STEP_LABEL)
    axes.set_ylabel(f"coherence ({findings.coherence_scale(run)})", color=VERMILION)
    loss_axes = axes.twinx()
    if len(train.step):
        plot_train_loss(loss_axes, train)
    polish(loss_axes, grid=False)
    loss_axes.spines["right"].set_visible(True)
    loss_axes.set_ylabel("training loss (nats per token)", color=BLUE)
    (lines, labels), (loss_lines, loss_labels) = axes.get_legend_handles_labels(), loss_axes.get_legend_handles_labels()
    loss_axes.legend(lines + loss_lines, labels + loss_labels, frameon=False, loc="upper right")
    return figure


def draw_phi(run: Run) -> Figure | None:
    now = run.curve("chrono/phi_excess")
    finding = "Excess phi: how well an expert's output agrees with its token's other experts"
    if not len(now.step):  # one expert a token
        now = run.curve("chrono/phi_cross_token")
        finding = "Cross-token phi: how well an expert's outputs agree with those of all others"
    if not len(now.step):
        return None
    figure = new_figure(4.2, finding, run)
    axes = figure.add_subplot()
    axes.plot(*now, color=PALE_GREY, linewidth=0.9, label="each logged step")
    for name, colour in {"fast": VERMILION, "mid": BLUE, "slow": SLATE}.items():
        curve = run.curve(f"chrono/phi_{name}")
        axes.plot(curve.step, curve.value, color=colour, label=f"{name} memory", **dot_if_short(curve))
    axes.axhline(0, color=BLACK, linewidth=1, linestyle="--", label="independent experts (0)")
    polish(axes)
    axes.set_xlabel(STEP_LABEL)
    axes.set_ylabel("cosine, mean over layers and experts")
    axes.legend(frameon=False)
    return figure


def draw_usage(run: Run) -> Figure | None:
    if run.routing is None:
        return None
    num_layers, num_experts = run.routing.num_layers, run.routing.num_experts
    columns = 1 if num_layers <= 4 else math.ceil(math.sqrt(num_layers / 2))
    rows = math.ceil(num_layers / columns)
    panel_height = min(2.4, max(1.3, 0.12 * num_experts))  # inches
    figure = new_figure(rows * panel_height + 1.3, findings.usage(run), run)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)

    pooled = pool_counts(run.routing.step, run.routing.tokens_per_expert, USAGE_BINS)
    shown = utilisation(pooled.counts)  # [bins, L, E]
    top = utilisation_top(shown)
    colours = utilisation_colours(top)
    for layer, axes in enumerate(grid.flat[:num_layers]):
        expert_edges = np.arange(num_experts + 1) - 0.5
        mesh = axes.pcolormesh(pooled.edges, expert_edges, shown[:, layer].T, cmap=colours, vmin=0, vmax=top)
        axes.set_title(f"MoE layer {layer}", fontsize=9, loc="left")
        axes.spines[:].set_visible(False)
        axes.yaxis.set_major_locator(whole_numbers())
        axes.tick_params(colors=SLATE, labelsize=9)
    grid.flat[0].xaxis.set_major_locator(whole_numbers())
    grid.flat[0].invert_yaxis()  # shared: expert 0 on top in every panel
    for axes in grid.flat[num_layers:]:
        axes.set_visible(False)
    figure.supxlabel(STEP_LABEL, fontsize=10)
    figure.supylabel("expert", fontsize=10)
    add_utilisation_bar(figure, mesh, grid, clipped=bool(np.nanmax(shown, initial=0) > top))
    return figure


def draw_layers(run: Run) -> Figure | None:
    """Layers x experts over the last `LATE_RECORDS` records: who is busy now."""
    if run.routing is None:
        return None
    counts = run.routing.tokens_per_expert[-LATE_RECORDS:].sum(axis=0)
    shown = utilisation(counts)  # [L, E]
    top = utilisation_top(shown)
    figure = new_figure(max(3.0, 0.3 * len(shown) + 1.6), findings.layers(shown), run)
    axes = figure.add_subplot()
    image = axes.imshow(shown, cmap=utilisation_colours(top), vmin=0, vmax=top, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.yaxis.set_major_locator(whole_numbers())
    axes.tick_params(colors=SLATE, labelsize=9)
    axes.set_xlabel("expert")
    axes.set_ylabel("MoE layer")
    add_utilisation_bar(figure, image, axes, clipped=bool(np.nanmax(shown, initial=0) > top))
    return figure


def utilisation_colours(top: float) -> Any:
    """The diverging map of utilisation, white at the fair share."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("utilisation", utilisation_scale(top), N=512).with_extremes(bad=PALE_GREY)


def add_utilisation_bar(figure: Figure, mappable: Any, axes: Any, *, clipped: bool) -> None:
    bar = figure.colorbar(
        mappable, ax=axes, extend="max" if clipped else "neither", pad=0.015, aspect=bar_aspect(figure)
    )
    bar.set_label("utilisation  (1 = fair share)")
    bar.outline.set_visible(False)  # type: ignore[operator]


def draw_control(run: Run) -> Figure | None:
    if run.routing is None or not run.routing.controls:
        return None
    controls = findings.shown_controls(run.routing)
    layers = thin_indices(run.routing.num_layers, MAX_CONTROL_LAYERS)
    figure = new_figure(1.6 * len(layers) + 1.5, findings.control(run), run)
    grid = figure.subplots(len(layers), len(controls), sharex=True, sharey="col", squeeze=False)
    records = thin_indices(len(run.routing.step), CONTROL_POINTS)
    step = run.routing.step[records]
    colours = expert_colours(run.routing.num_experts)
    for column, (name, values) in enumerate(controls.items()):
        for row, layer in enumerate(layers):
            axes: Axes = grid[row, column]
            axes.axhline(0, color=BLACK, linewidth=0.6)
            for expert, colour in enumerate(colours):
                axes.plot(step, values[records, layer, expert], color=colour, linewidth=1)
            polish(axes)
        unit = findings.CONTROL_UNITS[name]
        grid[0, column].set_title(f"{name.replace('_', ' ')} ({unit})", fontsize=10, loc="left")
    for row, layer in enumerate(layers):
        grid[row, 0].set_ylabel(f"layer {layer}", fontsize=9)
    figure.supxlabel(STEP_LABEL, fontsize=10)
    explain_expert_colours(figure, grid, run.routing)
    return figure


def explain_expert_colours(figure: Figure, grid: Any, routing: Routing) -> None:
    """A legend while experts have a colour of their own, a colour bar when the colour is a ramp over their number."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D

    colours = expert_colours(routing.num_experts)
    if routing.num_experts <= len(EXPERTS):
        lines = [Line2D([], [], color=colour, linewidth=2.5) for colour in colours]
        labels = [str(expert) for expert in range(routing.num_experts)]
        options: dict[str, Any] = {"ncols": 1, "frameon": False, "title": "expert", "handlelength": 1}
        figure.legend(lines, labels, loc="outside right center", **options)
    else:
        norm = BoundaryNorm(np.arange(routing.num_experts + 1) - 0.5, routing.num_experts)
        mappable = ScalarMappable(norm, ListedColormap(colours))
        bar = figure.colorbar(mappable, ax=grid, pad=0.015, aspect=bar_aspect(figure), label="expert")
        bar.set_ticks(list(range(0, routing.num_experts, math.ceil(routing.num_experts / 8))))


def plot_train_loss(axes: Axes, train: Curve) -> None:
    """The recorded loss, pale, under its running mean."""
    window = smoothing_window(len(train.step))
    if window > 1:
        axes.plot(train.step, train.value, color=PALE_BLUE, linewidth=0.8)
    label = f"training loss, mean of {window} records" if window > 1 else "training loss"
    axes.plot(*smooth(train, window), color=BLUE, linewidth=1.8, label=label, **dot_if_short(train))


def dot_if_short(curve: Curve) -> dict[str, Any]:
    """A line through one point is invisible."""
    return {"marker": "o"} if len(curve.step) == 1 else {}


def bar_aspect(figure: Figure) -> float:
    """Height over width that makes a colour bar 0.13 inches wide on a figure of any height."""
    return (figure.get_figheight() - 1) / 0.13


def new_figure(height: float, finding: str, run: Run) -> Figure:
    """An empty figure, `height` inches high, under a title that says what is seen and a line that says of which run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title_share = 0.56 / height  # the title takes 0.56 inches; the layout gets what is below
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, rect=(0, 0, 1, 1 - title_share))
    )
    FigureCanvasAgg(figure)
    figure.text(0.012, 1 - 0.10 / height, finding, va="top", fontsize=11, fontweight="bold")
    figure.text(0.012, 1 - 0.34 / height, findings.identity(run), va="top", fontsize=9, color=SLATE)
    return figure


def polish(axes: Axes, *, grid: bool = True) -> None:
    """Light frame, light grid, whole step numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(PALE_GREY)
    axes.tick_params(colors=SLATE, labelsize=9)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=PALE_GREY, linewidth=0.5, alpha=0.6)
    axes.xaxis.set_major_locator(whole_numbers())


def whole_numbers() -> MaxNLocator:
    """Ticks at as many whole numbers as there is room for."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)
