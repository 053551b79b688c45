"""The figures of a measurement, as PNG. "Not reached" is never drawn as a time.

Drawn with matplotlib's object interface: no window, no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from chronomoe.benchmark.figure import frame, new_figure
from chronomoe.decay.documented import ols_slope
from chronomoe.decay.entropy import mean_interval
from chronomoe.decay.series import FEWEST_CHUNKS, in_order
from chronomoe.halflife.arms import HUMAN, OFF, REAL, UNTRAINED
from chronomoe.halflife.quantities import PRIMARY
from chronomoe.study.figures import DPI
from chronomoe.study.palette import BLACK, BLUE, EXPERTS, GREEN, ORANGE, PALE_GREY, SLATE, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = {REAL: BLUE, OFF: ORANGE, UNTRAINED: VERMILION, HUMAN: GREEN}


def draw_all(found: dict[str, Any], folder: Path) -> list[Path]:
    """Every figure there is something for."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Figure | None] = {}
    for name, model in found["models"].items():
        figures[f"{name}-pressure"] = draw_pressure(name, model)
        figures[f"{name}-survival"] = draw_survival(name, model)
        figures[f"{name}-terms"] = draw_terms(name, model)
        figures[f"{name}-layers"] = draw_layers(name, model)
        figures[f"{name}-interruptions"] = draw_interruptions(name, model)
    figures["slopes"] = draw_slopes(found)
    figures["models"] = draw_models(found) if len(found["models"]) > 1 else None
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            written.append(folder / f"{name}.png")
    return written


def rows_of(model: dict[str, Any], arm: str) -> list[dict[str, Any]]:
    return [row for row in model["series"] if row["arm"] == arm and row["tokens"]]


def column(rows: Sequence[dict[str, Any]], name: str) -> NDArray[np.float64]:
    """[texts, chunks], NaN from the first degenerate chunk on and behind a text's end."""
    chunks = max(len(row["tokens"]) for row in rows)
    values = np.full((len(rows), chunks), np.nan)
    for number, row in enumerate(rows):
        flags = row["chunks"]["degenerate"]
        end = flags.index(True) if True in flags else len(flags)
        values[number, :end] = row["chunks"][name][:end]
    return values


def draw_band(
    axes: Axes, values: NDArray[np.float64], colour: str, label: str, *, texts: bool = False, dash: str = "-"
) -> None:
    """Median and quartiles over texts; `texts`: each of them, too."""
    k = np.arange(values.shape[1])
    alive = np.isfinite(values).sum(axis=0) >= max(2, len(values) // 4)
    if not alive.any():
        return
    if texts:
        axes.plot(k, values.T, color=colour, alpha=0.08, linewidth=0.6)
    low, middle, high = np.nanquantile(values[:, alive], [0.25, 0.5, 0.75], axis=0)
    axes.fill_between(k[alive], low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(k[alive], middle, color=colour, linewidth=1.8, linestyle=dash, label=label)


def draw_pressure(name: str, model: dict[str, Any]) -> Figure:
    figure = new_figure(5.6)
    texts = rows_of(model, REAL)
    figure.suptitle(f"{name}: {len(texts)} texts, median and quartiles; each chunk's mean", fontsize=11)
    (pressure, net), (parts, entropy) = figure.subplots(2, 2)
    reach = model["attainable"]
    for arm, colour in ARM_COLOURS.items():
        if rows_of(model, arm):
            draw_band(pressure, column(rows_of(model, arm), PRIMARY), colour, arm, texts=arm == REAL)
    pressure.axhline(reach["start"] / 2, color=BLACK, linestyle="--", linewidth=1, label="half of the start")
    pressure.axhspan(reach["low"], reach["high"], color=PALE_GREY, alpha=0.25, linewidth=0, label="attainable")
    label(pressure, "P_mid")
    draw_band(net, column(texts, "P_net"), BLUE, "P_net", texts=True)
    net.axhline(0, color=BLACK, linewidth=1)
    label(net, "P_net")
    for part, colour in zip(("P_fast", PRIMARY, "P_slow"), EXPERTS, strict=False):
        draw_band(parts, column(texts, part), colour, part)
    label(parts, "pressures")
    for arm, colour in ARM_COLOURS.items():
        if rows_of(model, arm):
            draw_band(entropy, column(rows_of(model, arm), "Hn"), colour, arm)
    label(entropy, "entropy of routing, over ln E")
    return figure


def label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("chunk")
    axes.legend(framealpha=0.8, edgecolor="none", fontsize=8)
    frame(axes)


def draw_survival(name: str, model: dict[str, Any]) -> Figure | None:
    shown = {arm: facts[PRIMARY]["survival"] for arm, facts in model["arms"].items() if facts.get(PRIMARY)}
    shown = {arm: survival for arm, survival in shown.items() if survival}
    if not shown:
        return None
    figure = new_figure(3.4)
    figure.suptitle(f"{name}: texts that kept more than half of their pressure", fontsize=11)
    keeping, incidence = figure.subplots(1, 2, sharey=True)
    for arm, survival in shown.items():
        t, colour = np.arange(len(survival["survival_T"])), ARM_COLOURS[arm]
        count = f"{arm} ({survival['events']} lost half, {survival['censored']} censored)"
        keeping.step(t, survival["survival_T"], where="post", color=colour, label=count)
        low, high = (np.array(survival[key], dtype=float) for key in ("low_T", "high_T"))
        keeping.fill_between(t, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        incidence.step(t, survival["half_incidence_T"], where="post", color=colour, label=f"{arm}: lost half")
        incidence.step(
            t, survival["stopped_incidence_T"], where="post", color=colour, linestyle=":", label=f"{arm}: ended itself"
        )
    keeping.set_ylim(-0.02, 1.02)
    label(keeping, "Kaplan-Meier, 95% band")
    label(incidence, "cumulative incidence")
    return figure


def draw_terms(name: str, model: dict[str, Any]) -> Figure | None:
    shares, frozen = model["variance_shares"], model["frozen_inputs"]
    if not shares:
        return None
    figure = new_figure(2.6)
    figure.suptitle(f"{name}: what P_mid is made of", fontsize=11)
    left, right = figure.subplots(1, 2)
    left.barh(list(shares), list(shares.values()), color=BLUE)
    left.set_title("share of its variance", fontsize=10, loc="left")
    kept = {term: found["variance_ratio"] for term, found in frozen.items() if found["variance_ratio"] is not None}
    right.barh(list(kept), list(kept.values()), color=ORANGE)
    right.axvline(1, color=BLACK, linestyle="--", linewidth=1)
    right.set_title("variance left with this input at its mean", fontsize=10, loc="left")
    for axes in (left, right):
        axes.invert_yaxis()
        frame(axes)
    return figure


def draw_layers(name: str, model: dict[str, Any]) -> Figure | None:
    rows = [row for row in rows_of(model, REAL) if not any(row["chunks"]["degenerate"])]
    if not rows:
        return None
    chunks = max(len(row["tokens"]) for row in rows)
    whole = [np.array(row["chunks"]["H_L"]) for row in rows if len(row["tokens"]) == chunks]
    image = np.mean(whole, axis=0).T
    figure = new_figure(1.6 + 0.25 * len(image))
    axes = figure.add_subplot()
    shown = axes.imshow(image, aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(shown, ax=axes, label="nats")
    axes.set_yticks(range(len(image)), [f"layer {number}" for number in range(len(image))])
    axes.set_xlabel("chunk")
    axes.set_title(f"{name}: entropy of routing, {len(whole)} whole texts", fontsize=11, loc="left")
    return figure


def draw_interruptions(name: str, model: dict[str, Any]) -> Figure | None:
    cells = model["perturbation"]["cells"]
    if not cells:
        return None
    figure = new_figure(3.2)
    axes = figure.add_subplot()
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    for colour, arm in zip(EXPERTS, arms, strict=False):
        mine = sorted((cell for cell in cells if cell["arm"] == arm), key=lambda cell: cell["dose"])
        response = [cell["response"][max(cell["response"], key=int)] for cell in mine]
        middle = np.array([found["estimate"] for found in response])
        low, high = (np.array([found[end] for found in response], dtype=float) for end in ("low", "high"))
        ends = np.abs(np.stack([middle - low, high - middle]))
        axes.errorbar(
            [cell["dose"] for cell in mine], middle, yerr=ends, marker="o", capsize=3, color=colour, label=arm
        )
    axes.axhline(0, color=BLACK, linewidth=1)
    axes.set_xlabel("tokens inserted")
    axes.set_title(f"{name}: change of P_mid after an interruption, 95% over prompts", fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=8)
    frame(axes)
    return figure


def draw_slopes(found: dict[str, Any]) -> Figure | None:
    """Slope of every arm's P_mid with its interval, beside what shuffled chunks give."""
    rows = []
    for name, model in found["models"].items():
        for arm in model["arms"]:
            texts = rows_of(model, arm)
            interval = slope_interval(texts) if texts else None
            if interval is not None:
                rows.append((f"{name}, {arm}", *interval, ARM_COLOURS[arm]))
        null = model["nulls"]["shuffled"]
        if null is None:
            continue
        rows.append((f"{name}, shuffled", 0.5 * (null["low"] + null["high"]), null["low"], null["high"], SLATE))
    figure = new_figure(1.2 + 0.3 * len(rows))
    axes = figure.add_subplot()
    for place, (_, middle, low, high, colour) in enumerate(rows):
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(middle, place, "o", color=colour)
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    figure.suptitle("slope of P_mid per chunk: mean and 95% over prompts; shuffled: 95% of chance", fontsize=11)
    frame(axes)
    return figure


def slope_interval(texts: Sequence[dict[str, Any]]) -> tuple[float, float, float] | None:
    """Over prompts, of texts of at least FEWEST_CHUNKS chunks: in few chunks a slope is noise."""
    values = column(texts, PRIMARY)
    long = [number for number, of in enumerate(values) if np.isfinite(of).sum() >= FEWEST_CHUNKS]
    if not long:
        return None
    slopes = np.array([ols_slope(values[number][np.isfinite(values[number])]) for number in long])
    found = mean_interval(slopes, in_order([texts[number]["prompt"] for number in long]))
    middle = float(slopes.mean())
    return middle, middle if found.low is None else found.low, middle if found.high is None else found.high


def draw_models(found: dict[str, Any]) -> Figure:
    figure = new_figure(3.8)
    figure.suptitle("median and quartiles over texts", fontsize=11)
    pressure, entropy = figure.subplots(1, 2)
    for colour, (name, model) in zip(EXPERTS, found["models"].items(), strict=False):
        draw_band(pressure, column(rows_of(model, REAL), PRIMARY), colour, name)
        draw_band(entropy, column(rows_of(model, REAL), "Hn"), colour, name)
        if rows_of(model, UNTRAINED):
            untrained = column(rows_of(model, UNTRAINED), PRIMARY)
            draw_band(pressure, untrained, colour, f"{name}, untrained", dash="--")
    label(pressure, "P_mid")
    label(entropy, "entropy of routing, over ln E")
    return figure
