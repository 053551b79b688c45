"""The axes of a sweep mean what Hydra's own multirun makes of them, and nothing is swept by mistake."""

from __future__ import annotations

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from chronomoe.settings import InputError
from chronomoe.sweep.axes import Axis, choices_of, distribution, grid, plain, read_axes
from chronomoe.sweep.points import Composer

KEYS = ["seed", "optim.lr", "chrono/clocks", "chrono", "+data.extra", "trainer.max_steps"]
NUMBERS = st.one_of(st.integers(-5, 5).map(str), st.sampled_from(["0.1", "1e-3", "2.5", "-0.0"]))
WORDS = st.sampled_from(["off", "quick", "true", "a-b", "'x y'", "[1,2]", "{a:1}", "32-true"])
VALUES = st.one_of(
    st.lists(st.one_of(NUMBERS, WORDS), min_size=1, max_size=4, unique=True).map(",".join),
    st.lists(NUMBERS, min_size=1, max_size=3, unique=True).map(lambda values: f"choice({','.join(values)})"),
    st.tuples(st.integers(0, 3), st.integers(4, 9), st.integers(1, 3)).map(lambda r: f"range({r[0]},{r[1]},{r[2]})"),
)


def axis(override: str) -> Axis:
    key, _, value = override.partition("=")
    (found,), fixed = read_axes({key: value}, [])
    assert fixed == []
    return found


def as_hydra(overrides: list[str]) -> list[list[str]]:
    """The points that a plain multirun of these overrides would run."""
    (points,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    return [list(point) for point in points]


def in_order(points: list[list[str]]) -> list[list[str]]:
    return sorted(sorted(point) for point in points)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_a_grid_is_the_product_that_hydras_own_sweeper_forms(params: dict[str, str]) -> None:
    axes, fixed = read_axes(params, [])
    assert fixed == []
    assert list(grid(axes)) == as_hydra([f"{key}={value}" for key, value in params.items()])


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2))
def test_axes_of_the_command_line_are_those_of_a_file(params: dict[str, str]) -> None:
    typed, fixed = read_axes({}, [f"{key}={value}" for key, value in params.items()])
    whole = [[*point, *fixed] for point in grid(typed)]
    assert in_order(whole) == in_order(as_hydra([f"{key}={value}" for key, value in params.items()]))


@given(VALUES, VALUES)
def test_the_command_line_replaces_an_axis_of_the_same_key_in_its_place(before: str, now: str) -> None:
    axes, fixed = read_axes({"chrono/clocks": before, "seed": "1,2"}, [f"chrono.clocks={now}"])
    assert fixed == []
    assert [plain(each.key) for each in axes] == ["chrono.clocks", "seed"]
    assert list(grid(axes)) == as_hydra([f"chrono.clocks={now}", "seed=1,2"])


def test_what_is_no_axis_is_shared_by_all_points() -> None:
    axes, fixed = read_axes({"seed": "1,2"}, ["optim.lr=0.1", "~data.path", "+model.x=[1,2]", "chrono=off,sign"])
    assert [each.key for each in axes] == ["seed", "chrono"]
    assert fixed == ["optim.lr=0.1", "~data.path", "+model.x=[1,2]"]


def test_numbers_of_yaml_are_axes_of_one_value() -> None:
    axes, _ = read_axes({"seed": 3, "optim.lr": 0.5, "trainer.compile": True}, [])
    assert list(grid(axes)) == [["seed=3", "optim.lr=0.5", "trainer.compile=True"]]


def test_a_glob_stands_for_the_options_of_a_group() -> None:
    with Composer():
        axes, _ = read_axes({}, ["chrono=glob(s*,exclude=sh*)"])
    assert axes[0].values == ["sign", "sinkhorn", "smebu"]


EMPTY = {
    "nothing": {"seed": None},
    "blanks": {"seed": "  "},
    "range": {"seed": "range(0,0)"},
}


@pytest.mark.parametrize("params", EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_axis_is_refused_by_its_key(params: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"seed.*the axis is empty; give it values, such as seed"):
        read_axes(params, [])


def test_an_empty_value_does_not_replace_an_axis() -> None:
    with pytest.raises(InputError, match=r"seed= leaves the axis empty; give it values, or leave it out"):
        read_axes({"seed": "1,2"}, ["seed="])


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(OverrideParseException, match="empty choice"):
        read_axes({}, ["seed=choice()"])


def test_a_list_of_yaml_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(InputError, match=r"seed: the axis is a list of YAML; write it as text, such as seed: 1,2,3"):
        read_axes({"seed": [1, 2]}, [])


TWICE = {
    "in_a_file": ({"chrono/clocks": "a,b", "chrono.clocks": "c"}, []),
    "on_the_command_line": ({}, ["chrono/clocks=a,b", "chrono.clocks=c,d"]),
    "with_and_without_plus": ({"x.y": "1,2", "++x.y": "3,4"}, []),
}


@pytest.mark.parametrize(("params", "typed"), TWICE.values(), ids=TWICE.keys())
def test_two_axes_for_one_key_are_refused(params: dict[str, str], typed: list[str]) -> None:
    with pytest.raises(InputError, match="two axes have this key; join their values in one"):
        read_axes(params, typed)


def test_a_value_that_stands_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"seed=1,2,1: 1 stands twice on the axis; remove one"):
        read_axes({}, ["seed=1,2,1"])


def test_an_interval_is_no_grid() -> None:
    with pytest.raises(InputError, match=r"seed=interval\(0,1\): a grid needs single values; .*sweep.sampler=tpe"):
        list(grid([axis("seed=interval(0,1)")]))


DISTRIBUTIONS = {
    "x=interval(0,1)": FloatDistribution(0.0, 1.0),
    "x=tag(log, interval(0.01, 1))": FloatDistribution(0.01, 1.0, log=True),
    "x=int(interval(1,8))": IntDistribution(1, 8),
    "x=tag(log, int(interval(1,8)))": IntDistribution(1, 8, log=True),
    "x=1,2,4": CategoricalDistribution([1, 2, 4]),
    "x=choice(1e-3,0.5)": CategoricalDistribution([0.001, 0.5]),
    "x=range(2,8,3)": CategoricalDistribution([2, 5]),
    "x=off,'a b',true": CategoricalDistribution(["off", "a b", True]),
    "x=[1],[2]": CategoricalDistribution(["[1]", "[2]"]),
    "x=3": CategoricalDistribution([3]),
}


@pytest.mark.parametrize(("override", "expected"), DISTRIBUTIONS.items(), ids=DISTRIBUTIONS.keys())
def test_a_search_draws_from_what_the_grammar_says(override: str, expected: object) -> None:
    assert distribution(axis(override)) == expected


@pytest.mark.parametrize("override", ["x=interval(1,0)", "x=interval(1,1)", "x=tag(log, interval(0,1))"])
def test_an_interval_that_holds_nothing_is_refused(override: str) -> None:
    with pytest.raises(InputError, match="an interval runs upwards, and from above 0 if it is `log`"):
        distribution(axis(override))


@given(VALUES)
def test_every_choice_of_a_search_has_the_text_it_is_written_as(written: str) -> None:
    one = axis(f"x={written}")
    choices = choices_of(one)
    assert len(choices) == len(one.values)
    for choice, text in zip(choices, one.values, strict=True):
        assert str(choice) == text.strip("'").replace("\\", "") or float(choice) == float(text.replace("True", "1"))


def test_a_shuffled_axis_keeps_one_order() -> None:
    """Hydra would shuffle again at every look."""
    one = axis("x=shuffle(range(50))")
    assert [str(choice) for choice in choices_of(one)] == one.values
    assert sorted(map(int, one.values)) == list(range(50))
