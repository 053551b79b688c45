"""A point is the config that Hydra composes, and is told apart by what shapes its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chronomoe.config import parse, register, restore, write_yaml
from chronomoe.settings import InputError
from chronomoe.sweep.axes import read_axes
from chronomoe.sweep.points import Composer, Point, beside, for_arm, varying, without_repeats

CHOICES = {
    "chrono": ["off", "chronovisor", "sign", "smebu"],
    "model": ["mixtral_2x8", "switch_2x8"],
    "chrono/clocks": ["default", "documented"],
    "chrono.gamma": ["0", "0.25", "1e-3"],
    "chrono.clocks.macro_period": ["4", "8"],
    "optim.lr": ["1e-3", "0.01"],
    "optim.betas": ["[0.8,0.9]"],
    "router.top_k": ["1", "2", "9"],
    "trainer.max_steps": ["7", "40"],
    "seed": ["3", "${trainer.max_steps}"],
    "data.val_sequences": ["16"],
    "++optim.weight_decay": ["0.2"],
}
OVERRIDES = st.permutations(sorted(CHOICES)).flatmap(
    lambda keys: st.tuples(
        *(st.sampled_from(CHOICES[key]).map(lambda value, key=key: f"{key}={value}") for key in keys)
    )
)


@pytest.fixture
def composer() -> Iterator[Composer]:
    GlobalHydra.instance().clear()
    register()
    with Composer() as composer:
        yield composer


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=OVERRIDES, shared=st.integers(0, 3), total=st.integers(1, 6))
def test_a_point_is_the_config_that_hydra_composes(
    composer: Composer, overrides: tuple[str, ...], shared: int, total: int
) -> None:
    """Also where Hydra or the checks refuse it."""
    common, own = list(overrides[:shared]), list(overrides[shared : shared + total])
    try:
        expected = parse(compose("train", [*common, *own]))
    except Exception:
        with pytest.raises(InputError):
            composer.point(common, own, Path("s"))
        return
    point = composer.point(common, own, Path("s"))
    point.config.sweep.point = None
    assert point.config == expected


def test_a_composer_that_made_one_point_makes_the_next_from_scratch(composer: Composer) -> None:
    points = [composer.point([], [f"optim.betas=[0.8,{beta}]"], Path("s")) for beta in ("0.9", "0.95", "0.9")]
    assert [point.config.optim.betas for point in points] == [[0.8, 0.9], [0.8, 0.95], [0.8, 0.9]]
    assert points[0].hash == points[2].hash != points[1].hash


def test_a_point_is_told_apart_by_what_shapes_its_run_and_by_nothing_else(composer: Composer) -> None:
    plain = composer.point([], ["seed=1"], Path("s"))
    watched = ["logger.tensorboard=true", "trainer.log_every_steps=7", "data.cache_dir=x", "sweep.storage=y"]
    assert composer.point(watched, ["seed=1"], Path("s")).hash == plain.hash
    assert composer.point(["optim.lr=0.5"], ["seed=1"], Path("s")).hash != plain.hash
    assert composer.point([], ["seed=2"], Path("s")).hash != plain.hash


def test_a_points_folder_and_membership_are_written_into_it(composer: Composer) -> None:
    point = composer.point(["sweep.name=s"], ["chrono=off", "seed=1"], Path("out/s"))
    assert point.run_dir == Path("out/s/runs") / point.hash
    assert (point.config.sweep.name, point.config.sweep.point) == ("s", "chrono=off seed=1")
    assert point.name == "chrono=off seed=1"
    assert dataclasses.asdict(restore(write_yaml(point.config))) == dataclasses.asdict(point.config)


WRONG = {
    "unknown_key": (["chrono.gama=1"], "unknown key 'chrono.gama': did you mean 'chrono.gamma'?"),
    "unknown_group": (["modle=x"], "unknown key 'modle': did you mean 'model'?"),
    "unknown_option": (["chrono=of"], "chrono=of does not exist: there are .*; did you mean chrono=off?"),
    "of_another_law": (["chrono=off", "chrono.gamma=1"], "'chrono.gamma' is no setting of the chosen law"),
    "type": (["optim.lr=fast"], "optim.lr.*Value 'fast'.* could not be converted to Float"),
    "range": (["chrono.pressure_scale=-1"], "chrono.pressure_scale=-1.0 is too small: the least is 0"),
    "contradiction": (["router.top_k=9"], "router.top_k=9 exceeds model.num_experts=8"),
}


@pytest.mark.parametrize(("overrides", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_point_is_refused_in_one_line_that_names_it(
    composer: Composer, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        composer.point([], overrides, Path("s"))
    assert str(refused.value).startswith(" ".join(overrides) + ": ")
    assert "\n" not in str(refused.value)


def test_arms_stand_beside_the_grid_each_crossed_with_the_seeds() -> None:
    axes, _ = read_axes({"chrono.gamma": "0,1", "seed": "1,2"}, [])
    assert beside(axes, ["chrono=off", "a=1 b=2"]) == [
        ["chrono=off", "seed=1"],
        ["chrono=off", "seed=2"],
        ["a=1", "b=2", "seed=1"],
        ["a=1", "b=2", "seed=2"],
    ]


def test_an_arm_stands_alone_where_no_seeds_are_swept() -> None:
    axes, _ = read_axes({"chrono.gamma": "0,1"}, [])
    assert beside(axes, ["chrono=off"]) == [["chrono=off"]]


def test_an_arm_shares_no_settings_of_a_group_that_it_chooses_itself() -> None:
    shared = ["sweep=gamma", "chrono.gamma=0.3", "chrono/clocks=slow", "chrono=documented", "data.seq_len=8"]
    assert for_arm(shared, ["chrono=off", "seed=1"]) == ["sweep=gamma", "data.seq_len=8"]
    assert for_arm(shared, ["chrono.gamma=0", "seed=1"]) == shared


def points(composer: Composer, *overrides: str) -> list[Point]:
    return [composer.point([], each.split(), Path("s")) for each in overrides]


def test_an_arm_that_the_grid_holds_too_is_run_once(composer: Composer) -> None:
    both = points(composer, "chrono=off seed=1", "chrono=off seed=1", "chrono=sign seed=1")
    assert [point.name for point in without_repeats(both, ["chrono=off"])] == [
        "chrono=off seed=1",
        "chrono=sign seed=1",
    ]


def test_two_points_that_are_one_run_are_refused(composer: Composer) -> None:
    both = points(composer, "trainer.log_every_steps=1", "trainer.log_every_steps=2")
    with pytest.raises(InputError, match="are the same run: an axis changes nothing there"):
        without_repeats(both, [])


def test_what_varies_are_the_settings_that_differ_not_the_axes(composer: Composer) -> None:
    mixed = points(composer, "chrono=off seed=1", "chrono=sign seed=1", "chrono=sign seed=2")
    found = varying(mixed)
    assert {"chrono.law", "seed", "chrono.rate"} <= set(found)
    assert not any(key.startswith(("sweep.", "model.", "optim.")) for key in found)
    assert varying(mixed[:1]) == []
