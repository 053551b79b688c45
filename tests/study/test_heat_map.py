from __future__ import annotations

from itertools import product

from made_runs import made_run

from chronomoe.study.comparison import compare_runs
from chronomoe.study.heat_map import heat_maps
from chronomoe.study.shown_arms import show_arms


def maps_of(*points: str, within: tuple[str, ...] = ()):
    runs = [
        made_run(
            "pi", 1, {"val_loss": 1.0}, point=f"{point} seed=1", name=point, chrono__point=point, model__x=point[:7]
        )
        for point in points
    ]
    shown = show_arms(compare_runs(runs, axis=["chrono", "model"], within=within, baseline="chrono=off"))
    return shown, heat_maps(shown)


def test_every_arm_has_its_place_by_size_and_the_longer_setting_goes_down():
    grid = [f"chrono.a={a} chrono.b={b}" for a, b in product(("0.1", "0.02"), ("10", "9", "1e1e"))]
    shown, (only,) = maps_of("chrono=off", *grid[:-1])
    assert (only.row_key, only.column_key, only.where) == ("chrono.b", "chrono.a", "")
    assert (only.rows, only.columns) == (["10", "9", "1e1e"], ["0.02", "0.1"])
    names = [[None if arm is None else shown[arm].arm.name for arm in row] for row in only.arms]
    assert names[1] == ["chrono.a=0.02 chrono.b=9", "chrono.a=0.1 chrono.b=9"]
    assert names[2] == [None, "chrono.a=0.1 chrono.b=1e1e"]


def test_other_settings_have_a_table_for_each_choice():
    grid = [f"chrono.a={a} chrono.b={b} chrono.c={c}" for a, b, c in product("123", "123", "12")]
    _, maps = maps_of("chrono=off", *grid)
    assert [one.where for one in maps] == ["chrono.c=1", "chrono.c=2"]
    assert all(arm is not None for one in maps for row in one.arms for arm in row)


def test_one_setting_makes_no_heat_map():
    assert maps_of("chrono=off", "chrono.a=1", "chrono.a=2")[1] == []
    assert maps_of("chrono=off", "chrono.a=1", "chrono.b=1")[1] == []
    assert maps_of("chrono=off", "chrono.a=1 chrono.b=1", "chrono.a=2 chrono.b=1")[1] == []
