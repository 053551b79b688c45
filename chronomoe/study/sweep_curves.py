"""The learning curves of a sweep's arms: what is drawn, and its bands over seeds at equal tokens.

A band is that of the mean over an arm's seeds (`bands.py`); seeds without the curve are left out. Curves of every
logged step are smoothed first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from chronomoe.study.bands import Band, TokenCurve, difference_band, mean_band, over_tokens, token_grid
from chronomoe.study.comparison import Arm
from chronomoe.study.run import Run
from chronomoe.study.series import smooth, smoothing_window
from chronomoe.study.shown_arms import ShownArm

CURVE_POINTS = 10_000
"""Most that all curves of one kind have together."""
MOST_POINTS, FEWEST_POINTS = 120, 10


class Kind(NamedTuple):
    name: str
    title: str
    column: str
    unit: str
    is_logged_often: bool = True
    is_log: bool = False
    """Drawn on a logarithmic axis, if all of it is above 0."""


KINDS = (
    Kind("validation-loss", "Validation loss", "val/loss", "loss (nats per token)", is_logged_often=False),
    Kind("training-loss", "Training loss, smoothed", "train/loss", "loss (nats per token)"),
    Kind("coherence", "Coherence", "chrono/coherence", "coherence (mean of layers)"),
    Kind("max-vio", "MaxVio", "router/max_vio", "MaxVio (0 = even load)", is_log=True),
)
DIFFERENCE = Kind(
    "loss-difference", "Validation loss, paired difference", "val/loss", "difference (nats per token)", False
)
Bands = dict[int, Band]
"""Index of an arm -> its band."""


def read_bands(shown: Iterable[ShownArm], baselines: Mapping[str, Arm]) -> dict[Kind, Bands]:
    """Kind -> the bands of the arms that have the curve; `baselines` by stratum. Kinds that no arm has are missing."""
    shown = list(shown)
    limit = max(FEWEST_POINTS, min(MOST_POINTS, CURVE_POINTS // max(1, len(shown))))
    found: dict[Kind, Bands] = {kind: {} for kind in (KINDS[0], DIFFERENCE, *KINDS[1:])}
    held: dict[str, dict[int, TokenCurve]] = {}
    for one in shown:
        for kind in KINDS:
            curves = read_curves(one.arm.runs, kind)
            grid_G = token_grid(list(curves.values()), limit)
            if len(grid_G):
                found[kind][one.index] = mean_band(list(curves.values()), grid_G)
            if kind.column != DIFFERENCE.column or one.arm.is_baseline:
                continue
            if one.arm.stratum not in held:
                held[one.arm.stratum] = read_curves(baselines[one.arm.stratum].runs, kind)
            difference = difference_band(curves, held[one.arm.stratum], limit)
            if difference is not None:
                found[DIFFERENCE][one.index] = difference
    return {kind: bands for kind, bands in found.items() if bands}


def read_curves(runs: Mapping[int, Run], kind: Kind) -> dict[int, TokenCurve]:
    """Seed -> the curve by tokens, of the runs that have it."""
    found = {}
    for seed, run in runs.items():
        curve = run.curve(kind.column)
        if kind.is_logged_often and len(curve.step):
            curve = smooth(curve, smoothing_window(len(curve.step)))
        by_tokens = over_tokens(curve, run.curve("train/tokens"))
        if len(by_tokens.tokens):
            found[seed] = by_tokens
    return found
