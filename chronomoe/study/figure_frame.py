"""What all figures of a sweep share: the frame with its title, how many arms fit, and the legend of arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chronomoe.study import findings
from chronomoe.study.palette import SLATE
from chronomoe.study.series import thin_indices
from chronomoe.study.shown_arms import ShownArm
from chronomoe.study.sweep_report import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

WIDTH = 9.0  # inches
DASHES: dict[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
"""matplotlib's names of plotly's."""
MOST_ARMS = 24


def some_arms(shown: Sequence[ShownArm], limit: int = MOST_ARMS) -> list[ShownArm]:
    """As many as a figure can hold, evenly spread."""
    return [shown[index] for index in thin_indices(len(shown), limit)]


def new_sweep_figure(height: float, title: str, sweep: Sweep, is_part: bool) -> Figure:
    """An empty figure, `height` inches high, under a title and a line that says of which sweep; and of which arms, if
    they are not all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    title_share = 0.6 / height  # the title takes 0.6 inches; the layout gets what is below
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.08, rect=(0, 0, 1, 1 - title_share))
    )
    FigureCanvasAgg(figure)
    run = sweep.shown[0].run
    facts = [f"sweep {sweep.name}", findings.shape(run), f"data {findings.data(run)}"]
    facts += [f"baseline {sweep.comparison.baseline}"] + ["not all arms: the page has them"] * is_part
    figure.text(0.012, 1 - 0.10 / height, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.36 / height, "  ·  ".join(facts), va="top", fontsize=9, color=SLATE)
    return figure


def explain_arms(axes: Axes, shown: Sequence[ShownArm]) -> None:
    """A legend to the right of the axes."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=one.colour, linewidth=2, linestyle=DASHES[one.dash]) for one in shown]
    is_many = len(shown) > 12
    labels = [(" " if is_many else "\n").join(one.ticks) for one in shown]
    options: dict[str, Any] = {"frameon": False, "fontsize": 6 if is_many else 8, "handlelength": 1.8}
    axes.legend(lines, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), **options)


def plain_numbers() -> MaxNLocator:
    """A few ticks on an axis that is no count."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
