"""Learning curves of a sweep's arms as a figure: a line and a band an arm, by tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chronomoe.study.figure_frame import DASHES, explain_arms, new_sweep_figure, plain_numbers, some_arms
from chronomoe.study.figures import polish
from chronomoe.study.palette import BLACK
from chronomoe.study.sweep_curves import DIFFERENCE, Kind
from chronomoe.study.sweep_report import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BANDS = 12


def draw_kind(sweep: Sweep, kind: Kind) -> Figure:
    from matplotlib.ticker import LogLocator

    bands = sweep.bands[kind]
    chosen = some_arms([one for one in sweep.shown if one.index in bands])
    figure = new_sweep_figure(4.4, kind.title, sweep, len(chosen) < len(bands))
    axes = figure.add_subplot()
    for one in chosen:
        band = bands[one.index]
        axes.plot(
            band.tokens / 1e6,
            band.mean,
            color=one.colour,
            linestyle=DASHES[one.dash],
            linewidth=2.2 if one.arm.is_baseline else 1.6,
        )
        if band.seeds > 1 and len(chosen) <= MOST_BANDS:
            axes.fill_between(band.tokens / 1e6, band.low, band.high, color=one.colour, alpha=0.14, linewidth=0)
    polish(axes)
    axes.xaxis.set_major_locator(plain_numbers())
    if kind.is_log and all((bands[one.index].mean > 0).all() for one in chosen):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if kind is DIFFERENCE:
        axes.axhline(0, color=BLACK, linewidth=1)
    axes.set_xlabel("tokens trained on (millions)")
    axes.set_ylabel(kind.unit)
    explain_arms(axes, chosen)
    return figure
