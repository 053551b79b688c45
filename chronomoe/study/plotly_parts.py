"""The parts of a plotly.js figure: lines, axes, layouts, and arrays packed as base64, all as plain dictionaries.

Plain, because plotly's own classes validate every attribute of every line, which takes seconds for a few thousand
lines; the tests validate instead.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.palette import PALE_GREY, SLATE
from chronomoe.study.run import Curve

View = dict[str, Any]
"""A figure: `data` (traces) and `layout`; also any part of one."""


def line(
    curve: Curve,
    name: str,
    colour: str,
    *,
    width: float = 2,
    dash: str = "solid",
    mode: str = "lines",
    showlegend: bool = True,
) -> View:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(curve.step) == 1 else mode,  # a line through one point is invisible
        "name": name,
        "x": packed(curve.step),
        "y": packed(curve.value),
        "line": {"color": colour, "width": width, "dash": dash},
        "showlegend": showlegend,
        "hovertemplate": "%{y:.4g}",
    }


def view(traces: Sequence[View], layout: View) -> View:
    return {"data": list(traces), "layout": layout}


def new_layout(ylabel: str, colour: str = SLATE) -> View:
    return {
        "height": 360,
        # Room for labels: where it has to find room itself, plotly.js may not settle.
        "margin": {"l": 64, "r": 24, "t": 16, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": SLATE},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": axis("optimizer step") | {"tickformat": ",~f"},
        "yaxis": axis(ylabel, colour),
    }


def axis(label: str, colour: str = SLATE) -> View:
    return {
        "title": {"text": label, "standoff": 8, "font": {"size": 13, "color": colour}},
        "automargin": True,
        "gridcolor": "#E4E7EB",
        "zerolinecolor": PALE_GREY,
        "linecolor": PALE_GREY,
        "tickfont": {"size": 12},
    }


def packed(values: NDArray[Any]) -> View:
    """An array as plotly.js reads it: 4-byte numbers in base64, with the shape when it has more than one axis."""
    kind = "i4" if np.issubdtype(values.dtype, np.integer) else "f4"
    encoded = base64.b64encode(np.ascontiguousarray(values, dtype="<" + kind).tobytes()).decode("ascii")
    spec: View = {"dtype": kind, "bdata": encoded}
    return spec | ({"shape": ",".join(map(str, values.shape))} if values.ndim > 1 else {})


def rounded(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Few numbers, which a script picks from: five digits each."""
    return [float(f"{value:.5g}") for value in values]


def translucent(colour: str) -> str:
    """A hex colour for the area of a band."""
    return f"rgba({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))}, 0.14)"
