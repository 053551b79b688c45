"""The picture of learning curves holds the bands it says it holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from made_runs import made_run

from chronomoe.study.comparison import Comparison, compare_runs
from chronomoe.study.curves_figure import MAX_ARMS, MAX_STRATA, draw_curves

STEP = np.arange(1.0, 51.0)


def compared(laws: tuple[str, ...] = ("pi", "off", "bip"), dims: int = 1, evaluated: bool = True) -> Comparison:
    runs = []
    for dim in range(dims):
        for law in laws:
            for seed in range(3):
                loss = 6 - STEP / 50 + seed / 7 + 0.5 * (law == "pi")
                columns = {"step": STEP, "train/tokens": 1e4 * STEP, "val/loss": loss}
                runs.append(
                    made_run(law, seed, {"val_loss": 5.0}, metrics=columns if evaluated else {}, model__dim=dim)
                )
    return compare_runs(runs, within=["model"])


def test_every_arm_is_a_line_and_every_difference_is_paired() -> None:
    figure = draw_curves(compared())
    assert figure is not None
    curves, differences = figure.axes
    assert [line.get_label() for line in curves.lines] == ["off (3)", "pi (3)", "bip (3)"]
    assert len({line.get_color() for line in curves.lines}) == 3
    by_name = {line.get_label(): line.get_ydata() for line in differences.lines}
    np.testing.assert_allclose(by_name["pi (3)"], 0.5)
    np.testing.assert_allclose(by_name["bip (3)"], 0.0, atol=1e-12)
    assert "off (3)" not in by_name


def test_every_stratum_is_a_row_as_far_as_there_is_room() -> None:
    figure = draw_curves(compared(dims=2))
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes[::2]] == ["model.dim=0", "model.dim=1"]
    figure = draw_curves(compared(dims=MAX_STRATA + 1))
    assert figure is not None
    assert len(figure.axes) == 2 * MAX_STRATA


def test_of_many_arms_those_of_the_lowest_loss_are_drawn() -> None:
    laws = ("off", *(f"law{number:02d}" for number in range(MAX_ARMS + 3)))
    comparison = compared(laws)
    by_loss = {arm.name: {**arm.effects, "val_loss": arm.effects["val_loss"]} for arm in comparison.arms}
    for number, law in enumerate(laws):
        by_loss[law]["val_loss"] = by_loss[law]["val_loss"]._replace(mean_difference=-number)
    arms = [replace(arm, effects=by_loss[arm.name]) for arm in comparison.arms]
    figure = draw_curves(replace(comparison, arms=arms))
    assert figure is not None
    drawn = [line.get_label().split()[0] for line in figure.axes[0].lines]
    assert drawn == ["off", *reversed(laws[4:])]


def test_without_curves_nothing_is_drawn() -> None:
    assert draw_curves(compared(evaluated=False)) is None
