"""Runs that differ in more than they are meant to are not compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import made_run

from chronomoe.settings import InputError
from chronomoe.study.differences import check_axis, is_beneath, shaping, varying


def check(*runs, axis: list[str]) -> None:
    check_axis(runs, [shaping(run) for run in runs], axis)


def test_runs_may_differ_along_the_axis_alone() -> None:
    check(made_run("off"), made_run("pi", 2, chrono__gain=1, chrono__schedule_steps=9), axis=["chrono"])
    check(made_run(chrono__gain=1, optim__lr=1), made_run(chrono__gain=2, optim__lr=2), axis=["chrono.gain", "optim"])
    with pytest.raises(InputError):
        check(made_run(chrono__gain=1), made_run(chrono__gain=2), axis=["chrono.ga"])


def test_seed_trace_and_what_watches_may_differ() -> None:
    one = made_run("off", 1, chrono__trace="a", trainer__log_every_steps=1, logger__kind="csv", point="seed=1")
    two = made_run("off", 2, chrono__trace="b", trainer__log_every_steps=5, logger__kind="wandb", point="seed=2")
    check(one, two, axis=[])


def test_the_refusal_names_key_runs_values_and_the_way_out() -> None:
    runs = [made_run("off", name="x/0", model__num_layers=2), made_run("pi", name="x/1", model__num_layers=4)]
    with pytest.raises(InputError) as raised:
        check(*runs, axis=["chrono"])
    message = str(raised.value)
    assert "\n" not in message
    for part in ("model.num_layers", "x/0 has model.num_layers=2", "x/1 has model.num_layers=4"):
        assert part in message
    assert "axis=chrono,model.num_layers" in message
    assert "within=model.num_layers" in message


def test_a_setting_that_one_run_lacks_is_a_difference() -> None:
    with pytest.raises(InputError, match=r"has data\.shuffle=\(no such setting\), .* has data\.shuffle=1"):
        check(made_run(), made_run(seed=2, data__shuffle=1), axis=["chrono"])


def test_many_differences_are_named_by_their_groups() -> None:
    runs = [made_run(**{f"model__a{i}": value for i in range(9)}, data__source=value) for value in (1, 2)]
    with pytest.raises(InputError, match=r"and 6 more .* axis=chrono,model,data, .*within=model,data$"):
        check(*runs, axis=["chrono"])


@pytest.mark.parametrize(
    ("key", "entries", "beneath"),
    [
        ("chrono.gain", ["chrono"], True),
        ("chrono", ["chrono"], True),
        ("chronology.x", ["chrono"], False),
        ("chrono.clocks.micro_period", ["chrono/clocks"], True),
        ("chrono/clocks", ["chrono"], True),
        ("model.dim", [], False),
        ("model", ["model.dim"], False),
    ],
)
def test_beneath_means_the_key_or_its_group(key: str, entries: list[str], beneath: bool) -> None:
    assert is_beneath(key, entries) is beneath


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 1) | st.lists(st.integers(0, 1))), min_size=1))
def test_varying_keys_are_those_with_two_values(settings: list[dict]) -> None:
    expected = {
        key for key in "abc" if any(repr(one.get(key)) != repr(two.get(key)) for one in settings for two in settings)
    }
    assert set(varying(settings)) == expected
