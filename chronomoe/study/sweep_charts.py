"""The interactive charts of a sweep: paired differences, learning curves, specialisation.

Every trace names the arms it shows (`meta.arm`, or `meta.arms` point by point), so that the page's script can leave out
those that a reader filters away. The script gives traces the name and, where they have none, the colour of their arm:
a thousand arms would say it a thousand times in every chart. Where rows are arms, `layout.meta.rows` has it write their
labels and fit the height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from chronomoe.study.bands import Band
from chronomoe.study.charts import Chart
from chronomoe.study.comparison import Arm
from chronomoe.study.measurements import METRICS
from chronomoe.study.palette import BLACK, BLUE, GREEN, PALE_GREY, SLATE, VERMILION
from chronomoe.study.plotly_parts import View, axis, new_layout, packed, rounded, translucent, view
from chronomoe.study.shown_arms import ShownArm
from chronomoe.study.specialisation import Specialisation
from chronomoe.study.sweep_curves import DIFFERENCE, Bands, Kind
from chronomoe.study.sweep_findings import finding, has_effect, told_apart

MARKS = "Large marks: mean of the pairs with its 95% interval; small ones: each pair."


def forest_chart(shown: Sequence[ShownArm], baselines: Mapping[str, Arm], baseline: str) -> Chart | None:
    """Paired differences, a row an arm and a view a metric; None without an arm beside the baselines."""
    keys = [key for key in METRICS if has_effect(shown, key)]
    if not keys:
        return None
    return Chart(
        name="forest",
        title="Paired differences",
        captions=[f"{finding(key, shown, baseline)}. {told_apart(key, shown)} {MARKS}" for key in keys],
        views=[forest_view(key, shown, baselines, baseline) for key in keys],
        menus=("metric",),
        keys=keys,
    )


def forest_view(key: str, shown: Sequence[ShownArm], baselines: Mapping[str, Arm], baseline: str) -> View:
    metric = METRICS[key]
    rows = [one for one in shown if key in one.arm.effects and not one.arm.is_baseline]
    effects = [one.arm.effects[key] for one in rows]
    pairs = [
        (one, seed, value - baselines[one.arm.stratum].values[key][seed])
        for one in rows
        for seed, value in one.arm.values[key].items()
        if seed in baselines[one.arm.stratum].values[key]
    ]
    dots = row_points([one for one, _, _ in pairs], [difference for _, _, difference in pairs], offset=0.27)
    dots["marker"] = {"size": 5, "opacity": 0.45}
    dots["customdata"] = [seed for _, seed, _ in pairs]
    dots["hovertemplate"] = "%{text}<br>seed %{customdata}: %{x:+.4g}<extra></extra>"
    means = row_points(rows, [found.mean_difference for found in effects])
    means["marker"] = {"size": 10, "line": {"color": "#fff", "width": 1}}
    means["error_x"] = {
        "type": "data",
        "symmetric": False,
        "array": rounded([found.ci_high - found.mean_difference for found in effects]),
        "arrayminus": rounded([found.mean_difference - found.ci_low for found in effects]),
        "color": SLATE,
        "thickness": 2,
        "width": 4,
    }
    means["hovertemplate"] = "%{text}<br>%{x:+.4g} (+%{error_x.array:.2g}, −%{error_x.arrayminus:.2g})<extra></extra>"
    better = "higher" if metric.higher_is_better else "lower"
    return view(
        [dots, means], row_layout(f"{metric.label} minus that of {baseline}<br>({metric.unit}; {better} is better)")
    )


def row_points(rows: Sequence[ShownArm], values: Sequence[float], name: str = "", offset: float = 0) -> View:
    """Marks in the rows of arms, or below by a share of a row's height."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "showlegend": bool(name),
        "x": rounded(values),
        "meta": {"arms": [one.index for one in rows], "offset": offset},
    }


def row_layout(xlabel: str) -> View:
    layout = new_layout("")
    layout["xaxis"] = axis(xlabel) | {
        "zeroline": True,
        "zerolinecolor": BLACK,
        "zerolinewidth": 1.5,
        "nticks": 6,
        "tickangle": 0,
    }
    layout["yaxis"] = {"gridcolor": "#E4E7EB", "zeroline": False, "tickfont": {"size": 12}}
    layout["hovermode"] = "closest"
    layout["meta"] = {"rows": True}
    return layout


def curve_charts(shown: Sequence[ShownArm], bands: Mapping[Kind, Bands], baseline: str) -> list[Chart]:
    """A line an arm, with its band, by tokens."""
    return [curve_chart(shown, kind, mine, baseline) for kind, mine in bands.items()]


def curve_chart(shown: Sequence[ShownArm], kind: Kind, bands: Bands, baseline: str) -> Chart:
    traces: list[View] = []
    for one in shown:
        if one.index in bands:
            traces += band_traces(one, bands[one.index])
    layout = new_layout(kind.unit)
    layout["xaxis"] = axis("tokens trained on") | {"tickformat": "~s", "rangemode": "tozero"}
    layout |= {"hovermode": "closest", "height": 340, "showlegend": False}
    layout["meta"] = {"hover": "%{x:.3s} tokens: %{y:.4g}"}
    if kind.is_log and all((band.mean > 0).all() for band in bands.values()):
        layout["yaxis"] |= {"type": "log", "dtick": "D2", "minor": {"showgrid": True, "gridcolor": "#F1F3F5"}}
    if kind is DIFFERENCE:
        layout["yaxis"] |= {"zeroline": True, "zerolinecolor": BLACK, "zerolinewidth": 1.5}
    return Chart(
        name=kind.name, title=kind.title, captions=[curve_finding(shown, kind, bands, baseline)],
        views=[view(traces, layout)],
    )  # fmt: skip


def band_traces(one: ShownArm, band: Band) -> list[View]:
    """The band first, so that lines lie above it."""
    mean: View = {
        "mode": "lines",
        "x": packed(band.tokens.astype(np.int64)),
        "y": packed(band.mean),
        "line": {"color": one.colour, "width": 2.5 if one.arm.is_baseline else 2, "dash": one.dash},
        "meta": {"arm": one.index},
    }
    if band.seeds == 1:
        return [mean]
    area = {
        "mode": "lines",
        "x": packed(np.concatenate([band.tokens, band.tokens[::-1]])),
        "y": packed(np.concatenate([band.low, band.high[::-1]])),
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": translucent(one.colour),
        "hoverinfo": "skip",
        "meta": {"arm": one.index, "band": True},
    }
    return [area, mean]


def curve_finding(shown: Sequence[ShownArm], kind: Kind, bands: Bands, baseline: str) -> str:
    """Where the lowest and the highest arm end, and what the lines are."""
    ends = {index: float(band.mean[-1]) for index, band in bands.items()}
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    form = "+.3g" if kind is DIFFERENCE else ".3g" if kind.is_log else ".4g"
    spread = f"At the end from {ends[low]:{form}} ({shown[low].name}) to {ends[high]:{form}} ({shown[high].name})"
    spread = spread if low != high else f"{ends[low]:{form}} at the end ({shown[low].name})"
    what = f"Difference to {baseline}, mean of the pairs" if kind is DIFFERENCE else "Mean over seeds"
    bands_too = ", with its 95% band" if any(band.seeds > 1 for band in bands.values()) else ""
    return f"{spread}. {what}{bands_too}.".replace("-", "−") if kind is DIFFERENCE else f"{spread}. {what}{bands_too}."


def specialisation_chart(shown: Sequence[ShownArm], found: Mapping[int, Specialisation]) -> Chart | None:
    """Trained, untrained, and what chance and the ideal routing would read; None where no run was evaluated."""
    rows = [one for one in shown if one.index in found]
    if not rows:
        return None
    read = [found[one.index] for one in rows]
    trained = row_points(rows, [mine.trained.mean for mine in read], "trained")
    trained["marker"] = {"color": BLUE, "size": 11}
    trained["error_x"] = {
        "type": "data",
        "symmetric": False,
        "array": rounded([mine.trained.high - mine.trained.mean for mine in read]),
        "arrayminus": rounded([mine.trained.mean - mine.trained.low for mine in read]),
        "color": BLUE,
        "thickness": 2,
        "width": 4,
    }
    marks = [
        ("untrained twin (the words alone)", [mine.untrained for mine in read], VERMILION, "circle-open"),
        ("random routing (floor)", [mine.floor for mine in read], SLATE, "line-ns-open"),
        ("ideal routing (ceiling)", [mine.ceiling for mine in read], GREEN, "diamond-open"),
    ]
    traces = [trained]
    for name, values, colour, symbol in marks:
        there = [(one, value) for one, value in zip(rows, values, strict=True) if value is not None]
        if there:
            trace = row_points([one for one, _ in there], [value for _, value in there], name)
            trace["marker"] = {"color": colour, "size": 11, "symbol": symbol, "line": {"width": 2}}
            traces.append(trace)
    for trace in traces:
        trace["hovertemplate"] = f"%{{text}}<br>{trace['name']}: %{{x:.4f}}<extra></extra>"
    beyond, layers = (sum(getattr(mine, part) for mine in read) for part in ("beyond_chance", "layers"))
    caption = (
        f"Beyond the permutation null (0) with p ≤ 0.05 in {beyond} of {layers} layers of evaluated runs. "
        "Mean over layers and seeds, 95% interval over seeds."
    )
    layout = row_layout("what an expert tells about the domain<br>(debiased: 0 = chance, 1 = everything)")
    layout["xaxis"] |= {"zerolinecolor": PALE_GREY}
    layout["shapes"] = [chance_line()]
    return Chart(
        name="specialisation",
        title="Specialisation by domain, with its nulls",
        captions=[caption],
        views=[view(traces, layout)],
    )


def chance_line() -> View:
    return {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": BLACK, "width": 1.5, "dash": "dash"},
    }
