"""Arms and strata by name: from a sweep's points, and from what sets runs apart."""

from __future__ import annotations

import pytest
from made_runs import made_run

from chronomoe.settings import InputError
from chronomoe.study.arms import find_baseline, name_arms, name_strata, point


def test_arms_are_named_by_what_sets_them_apart() -> None:
    runs = [
        made_run("off"),
        made_run("pi", chrono__gain=0.1),
        made_run("pi", chrono__gain=0.2),
        made_run("pi", 2, chrono__gain=0.1),
    ]
    arms = name_arms(runs)
    assert set(arms) == {"off", "pi chrono.gain=0.1", "pi chrono.gain=0.2"}
    assert set(arms["pi chrono.gain=0.1"]) == {1, 2}


def test_a_plant_as_it_is_under_every_other_law_needs_no_name() -> None:
    plants = (("off", 0.0), ("off", 0.01), ("pi", 0.0))
    runs = [made_run(law, router__load_balancing_weight=weight) for law, weight in plants]
    assert set(name_arms(runs)) == {"off", "off router.load_balancing_weight=0.01", "pi"}


def test_what_watches_a_run_is_no_part_of_its_name() -> None:
    runs = [made_run("sham", seed, chrono__trace=f"runs/{seed}", logger__group=f"g{seed}") for seed in (1, 2)]
    assert set(name_arms(runs)) == {"sham"}


def test_arms_of_a_sweep_are_named_by_their_points() -> None:
    points = {
        "chrono.pressure_scale=0.1 seed=1": "chrono.pressure_scale=0.1",
        "seed=1 chrono=off": "chrono=off",
        "model=switch_2x8 chrono.gamma=0.2 seed=1": "chrono.gamma=0.2",
        "+chrono.layer_scales=[1, 0.5] seed=1": "chrono.layer_scales=[1, 0.5]",
        "model=switch_2x8 seed=1": "law",
    }
    for words, name in points.items():
        assert set(name_arms([made_run("law", point=words)], within=["model"])) == {name}


def test_what_is_beneath_within_is_no_part_of_a_name() -> None:
    run = made_run("pi", point="chrono/clocks=slow model.num_layers=2 chrono.gain=1 seed=3")
    assert set(name_arms([run], within=["model", "chrono.clocks"])) == {"chrono.gain=1"}


def test_a_point_holds_values_with_blanks_and_equals_signs() -> None:
    run = made_run(point="data.path='my books' ++chrono.a/b@c=x=y seed=1")
    assert point(run) == {"data.path": "'my books'", "chrono.a/b@c": "x=y", "seed": "1"}
    assert point(made_run()) == {}


def test_a_seed_twice_in_an_arm_is_refused() -> None:
    runs = [made_run("off", 1, name=name) for name in ("here", "there")]
    with pytest.raises(InputError, match="arm 'off' has seed 1 twice, in here and there"):
        name_arms(runs)


def test_an_arm_whose_runs_differ_is_refused() -> None:
    runs = [made_run("off", seed, point=f"chrono=off seed={seed}", optim__lr=seed / 10) for seed in (1, 2)]
    with pytest.raises(InputError, match=r"runs of arm 'chrono=off' differ in optim\.lr: .*=0\.1.*=0\.2"):
        name_arms(runs)


def test_strata_are_named_by_points_or_else_by_what_varies_in_the_group() -> None:
    runs = [made_run(point=f"model={model} seed=1", model__dim=dim) for model, dim in (("a", 1), ("b", 2))]
    assert name_strata(runs, ["model"]) == ["model=a", "model=b"]
    assert name_strata([*runs, made_run(model__dim=2, model__depth=1)], ["model"])[1:] == [
        "model.dim=2 model.depth=(no such setting)",
        "model.dim=2 model.depth=1",
    ]
    assert name_strata(runs, []) == ["", ""]
    assert name_strata(runs[:1], ["model.dim"]) == [""]  # nothing varies


def test_strata_within_nothing_that_exists_are_refused() -> None:
    with pytest.raises(InputError, match="within=modle is no setting"):
        name_strata([made_run(model__dim=1)], ["modle"])


@pytest.mark.parametrize(
    ("given", "names", "found"),
    [
        (None, ["pi", "off"], "off"),
        (None, ["chrono.gain=1", "chrono=off"], "chrono=off"),
        ("off", ["chrono=off", "pi"], "chrono=off"),
        ("pi", ["off", "pi"], "pi"),
        (None, ["pi"], "pi"),
        ("b=2 a=1", ["a=1", "a=1 b=2"], "a=1 b=2"),
    ],
)
def test_a_baseline_is_found_by_name(given: str | None, names: list[str], found: str) -> None:
    assert find_baseline(given, names) == found


@pytest.mark.parametrize("given", [None, "sign"])
def test_without_the_baseline_the_arms_are_listed(given: str | None) -> None:
    with pytest.raises(InputError, match=r"there are pi, bip; name one with baseline="):
        find_baseline(given, ["pi", "bip"])
