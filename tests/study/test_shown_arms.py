"""How arms are called, ordered, coloured and filtered."""

from __future__ import annotations

import pytest
from made_runs import made_run

from chronomoe.study.comparison import compare_runs
from chronomoe.study.palette import BLACK
from chronomoe.study.run import Run
from chronomoe.study.shown_arms import ShownArm, as_json, filters, is_ordered, show_arms, tick_lines, words_of


def of_point(point: str, seed: int = 1, **settings: object) -> Run:
    law = "off" if "chrono=off" in point else "pi"
    return made_run(law, seed, {"val_loss": 5.0}, point=f"{point} seed={seed}", name=f"runs/{point}", **settings)


def shown_of(*runs: Run, within: tuple[str, ...] = ()) -> list[ShownArm]:
    return show_arms(compare_runs(runs, axis=["chrono"], within=within, baseline="chrono=off"))


def test_arms_are_ordered_by_their_numbers_and_the_baseline_comes_first():
    values = ["0.5", "0.05", "10", "1e-3"]
    shown = shown_of(
        *(of_point(f"chrono.x={value}", chrono__x=float(value)) for value in values), of_point("chrono=off")
    )
    assert [one.name.split("=")[1] for one in shown] == ["off", "1e-3", "0.05", "0.5", "10"]
    assert [one.index for one in shown] == [0, 1, 2, 3, 4]
    assert filters(shown) == {"chrono.x": ["1e-3", "0.05", "0.5", "10"]}


def test_steps_of_one_number_have_a_ramp_of_colours_and_laws_have_hues():
    assert is_ordered(["chrono.x=1", "chrono.x=2"])
    assert not is_ordered(["chrono.x=1", "chrono.y=2"])
    assert not is_ordered(["chrono=sign", "chrono=bip"])
    assert not is_ordered(["chrono.x=1 chrono.y=1", "chrono.x=2 chrono.y=1"])


def test_an_arm_has_one_colour_in_all_strata_whose_lines_differ():
    runs = [
        of_point(f"model={model} {arm}", model__dim=dim)
        for dim, model in enumerate(("small", "large"))
        for arm in ("chrono=off", "chrono.x=1")
    ]
    shown = shown_of(*runs, within=("model",))
    assert [(one.arm.stratum, one.arm.name) for one in shown] == [
        ("model=small", "chrono=off"), ("model=small", "chrono.x=1"),
        ("model=large", "chrono=off"), ("model=large", "chrono.x=1"),
    ]  # fmt: skip
    assert [one.colour for one in shown] == [BLACK, shown[1].colour, BLACK, shown[1].colour]
    assert [one.dash for one in shown] == ["solid", "solid", "dash", "dash"]
    assert filters(shown) == {"model": ["small", "large"]}


def test_the_first_word_of_an_arm_of_no_sweep_is_its_law():
    assert words_of("chronovisor chrono.gamma=0.5") == {"law": "chronovisor", "chrono.gamma": "0.5"}
    assert words_of("") == {}


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"chrono.pressure_scale": "0.1"}, ["pressure_scale=0.1"]),
        ({"chrono.a": "1", "chrono/b": "2"}, ["a=1 b=2"]),
        ({"chrono.pressure_scale": "0.1", "chrono.temperature.eta": "0.02"}, ["pressure_scale=0.1", "eta=0.02"]),
        ({"data.path": "/a/very/long/path/to/some/text"}, ["path=/a/very/long/path/to/som…"]),
    ],
)
def test_labels_on_an_axis_are_short(values: dict[str, str], lines: list[str]):
    assert tick_lines(values) == lines


def test_a_name_cannot_become_markup_on_an_axis():
    shown = shown_of(of_point("chrono.x=<b>", chrono__x="<b>"), of_point("chrono=off"))
    assert as_json(shown)[1]["ticks"] == "x=&lt;b&gt;"
