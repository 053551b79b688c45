"""The sign-flip test against every flip and against its own promise; Holm's correction against its definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.study.significance import EXACT_PAIRS, FLIPS, benjamini_hochberg, holm, least_p, sign_flip_p

DIFFERENCES = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


def by_hand(differences: list[float]) -> float:
    flips = itertools.product((1, -1), repeat=len(differences))
    sums = [sum(sign * value for sign, value in zip(flip, differences, strict=True)) for flip in flips]
    tolerance = 1e-12 * sum(map(abs, differences))
    return sum(abs(total) >= abs(sum(differences)) - tolerance for total in sums) / len(sums)


@given(DIFFERENCES)
def test_p_is_the_share_of_all_flips_that_are_as_far(differences: list[float]) -> None:
    assert sign_flip_p(np.array(differences)) == pytest.approx(by_hand(differences))


@given(DIFFERENCES, st.randoms(use_true_random=False))
def test_p_depends_neither_on_order_nor_on_which_arm_is_called_the_baseline(differences: list[float], random) -> None:
    p = sign_flip_p(np.array(differences))
    shuffled = random.sample(differences, len(differences))
    assert sign_flip_p(np.array(shuffled)) == pytest.approx(p)
    assert sign_flip_p(-np.array(differences)) == pytest.approx(p)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=EXACT_PAIRS))
def test_pairs_that_all_agree_have_the_least_p(differences: list[float]) -> None:
    assert sign_flip_p(np.array(differences)) == pytest.approx(least_p(len(differences)))


def test_no_difference_at_all_is_no_evidence() -> None:
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_drawn_flips_agree_with_all_flips() -> None:
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.2, 0.4):
        few = rng.normal(shift, 1, size=EXACT_PAIRS)
        p = sign_flip_p(few)
        drawn = sign_flip_p(np.append(few, 1e-15))  # one more pair that changes no sum
        assert drawn == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / FLIPS) + 2e-4)


def test_drawn_flips_are_the_same_each_time_and_never_give_zero() -> None:
    values = np.ones(20)
    assert sign_flip_p(values) == sign_flip_p(values) == least_p(20) == pytest.approx(1 / (FLIPS + 1))


@pytest.mark.parametrize(("pairs", "shape"), [(6, "normal"), (8, "laplace"), (10, "standard_t"), (18, "normal")])
def test_an_arm_that_does_nothing_is_called_significant_at_the_nominal_rate(pairs: int, shape: str) -> None:
    rng = np.random.default_rng(pairs)
    draw = {"normal": rng.normal, "laplace": rng.laplace, "standard_t": lambda size: rng.standard_t(2, size)}[shape]
    found = np.array([sign_flip_p(draw(size=pairs)) for _ in range(1500)])
    attainable = np.floor(0.05 * 2 ** (pairs - 1)) / 2 ** (pairs - 1)
    assert np.mean(found <= 0.05) == pytest.approx(attainable, abs=4 * np.sqrt(attainable * 0.95 / 1500))


def test_a_planted_effect_is_found() -> None:
    rng = np.random.default_rng(3)
    assert np.mean([sign_flip_p(rng.normal(1.5, 1, size=10)) <= 0.05 for _ in range(200)]) > 0.9


def holm_by_hand(p_values: list[float]) -> list[float]:
    """The smallest level at which the step-down procedure rejects each one."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    for rank, index in enumerate(order):
        adjusted[index] = max(min(1.0, (len(p_values) - j) * p_values[order[j]]) for j in range(rank + 1))
    return adjusted


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_its_definition(p_values: list[float]) -> None:
    found = holm(dict(enumerate(p_values)))
    assert list(found) == list(range(len(p_values)))
    assert list(found.values()) == pytest.approx(holm_by_hand(p_values))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    for number, corrected in holm(dict(enumerate(p_values))).items():
        assert p_values[number] <= corrected <= min(1.0, len(p_values) * p_values[number]) or corrected == 1.0


def test_holm_of_an_example() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_one_false_alarm_among_many_cells_is_as_rare_as_promised() -> None:
    rng = np.random.default_rng(5)
    baseline = rng.normal(size=(400, 10))
    alarms = 0
    for theirs in baseline:
        p_values = {arm: sign_flip_p(rng.normal(size=10) - theirs) for arm in range(6)}  # all against one baseline
        alarms += min(holm(p_values).values()) <= 0.05
    assert alarms / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_benjamini_hochberg_rejects_as_its_procedure_does(p_values: list[float]) -> None:
    corrected = benjamini_hochberg(dict(enumerate(p_values)))
    assert list(corrected) == list(range(len(p_values)))
    for level in (0.01, 0.05, 0.2):
        ranked = sorted(p_values)
        bounds = [level * (rank + 1) / len(ranked) for rank in range(len(ranked))]
        passed = [p for p, bound in zip(ranked, bounds, strict=True) if p <= bound]
        rejected = {index for index, p in enumerate(p_values) if passed and p <= max(passed)}
        found = {index for index, p in corrected.items() if p <= level}
        edge = {index for index, p in corrected.items() if abs(p - level) < 1e-9}
        assert rejected - edge == found - edge


def test_benjamini_hochberg_of_an_example() -> None:
    found = benjamini_hochberg({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "b": 0.16 / 3, "c": 0.16 / 3, "d": 0.5})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_benjamini_hochberg_is_between_nothing_and_holm(p_values: list[float]) -> None:
    cells = dict(enumerate(p_values))
    for cell, corrected in benjamini_hochberg(cells).items():
        assert cells[cell] - 1e-12 <= corrected <= holm(cells)[cell] + 1e-12
