"""`figures/specialisation.png`: which experts each domain's tokens choose oftener than all tokens do.

Drawn from `evaluation.json`, one panel a layer; 1 (white) is no preference, whatever the expert's load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomoe.study.figures import (
    DPI,
    MAX_CONTROL_LAYERS,
    add_utilisation_bar,
    new_figure,
    utilisation_colours,
    whole_numbers,
)
from chronomoe.study.palette import SLATE
from chronomoe.study.run import Run
from chronomoe.study.series import thin_indices, utilisation_top

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_specialisation(run: Run, evaluation: dict[str, Any]) -> Path:
    """Draw the figure of an MoE run's evaluation into the run's `figures/`; returns the file."""
    path = run.directory / "figures" / "specialisation.png"
    path.parent.mkdir(exist_ok=True)
    draw_specialisation(run, evaluation).savefig(path, dpi=DPI)
    return path


def draw_specialisation(run: Run, evaluation: dict[str, Any]) -> Figure:
    """At most `MAX_CONTROL_LAYERS` layers, the first and the last among them. Grey: no token to tell from."""
    trained, domains = evaluation["trained"], evaluation["domains"]
    layers = thin_indices(len(trained["layers"]), MAX_CONTROL_LAYERS)
    shown = np.array([trained["layers"][layer]["domain_specialisation"] for layer in layers], dtype=float)
    figure = new_figure(len(layers) * (0.22 * len(domains) + 0.5) + 1.3, finding(evaluation), run)
    grid = figure.subplots(len(layers), 1, sharex=True, squeeze=False)
    top = utilisation_top(shown)
    for layer, values, axes in zip(layers, shown, grid.flat, strict=True):
        image = axes.imshow(values, cmap=utilisation_colours(top), vmin=0, vmax=top, aspect="auto")
        axes.set_title(f"MoE layer {layer}", fontsize=9, loc="left")
        axes.set_yticks(range(len(domains)), domains)
        axes.spines[:].set_visible(False)
        axes.xaxis.set_major_locator(whole_numbers())
        axes.tick_params(colors=SLATE, labelsize=9)
    figure.supxlabel("expert", fontsize=10)
    add_utilisation_bar(figure, image, grid, clipped=bool(np.nanmax(shown, initial=0) > top))
    figure.axes[-1].set_ylabel("preference  (1 = none)")
    return figure


def finding(evaluation: dict[str, Any]) -> str:
    trained, untrained = (evaluation[name]["mean"]["domain_debiased"] for name in ("trained", "untrained"))
    if trained is None or untrained is None:
        return "Domains and experts: too few documents or domains to tell chance from specialisation"
    return f"Domain specialisation {trained:.3f} of 1 beyond chance, untrained {untrained:.3f} (mean over layers)"
