"""What a series is, where it ends, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chronomoe.decay.series import Series, prompt_indices, shortage
from chronomoe.settings import InputError

VALUES = np.linspace(1, 0, 12)


def flags(*degenerate: int) -> np.ndarray:
    return np.isin(np.arange(12), degenerate)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value_K": np.array([0.1, np.nan])}, "chunk 1 is nan"),
        ({"value_K": np.array([np.inf])}, "chunk 0 is inf"),
        ({"value_K": np.zeros((2, 3))}, "shape [2, 3]"),
        ({"value_K": np.zeros(0)}, "shape [0]"),
        ({"stop": "EOS"}, "stop=EOS; it is one of K, eos, degenerate, rule1, rule2"),
        ({"degenerate_K": flags()[:3]}, "3 degenerate flags for 12 chunks"),
    ],
)
def test_a_bad_series_is_refused_in_one_line_with_its_prompt_and_seed(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="prompt leaves, seed 2") as refused:
        Series(**{"value_K": VALUES, "prompt": "leaves", "seed": 2, **changes})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_chunks_from_the_first_degenerate_one_on_are_not_observed() -> None:
    series = Series(VALUES, "a", 0, "eos", flags(7, 9))
    np.testing.assert_array_equal(series.observed_K, VALUES[:7])
    assert series.ending == "censored"  # the text was lost from sight before it ended


@pytest.mark.parametrize(
    ("stop", "ending"),
    [("K", "censored"), ("degenerate", "censored"), ("eos", "stopped"), ("rule1", "stopped"), ("rule2", "stopped")],
)
def test_only_runs_that_end_themselves_are_stopped(stop: Any, ending: str) -> None:
    series = Series(VALUES, "a", 0, stop, flags())
    assert series.ending == ending
    np.testing.assert_array_equal(series.observed_K, VALUES)


def test_prompts_are_numbered_as_they_come() -> None:
    arm = [Series(VALUES, prompt, 0) for prompt in "bacab"]
    assert prompt_indices(arm).tolist() == [0, 1, 2, 1, 0]


def test_an_arm_is_too_small_by_its_prompts_or_by_its_seeds() -> None:
    arm = [Series(VALUES, str(prompt), seed) for prompt in range(20) for seed in range(3)]
    assert shortage(arm) is None
    assert shortage(arm[:-1]) == "20 prompts x 2 seeds; intervals need 20 x 3"
    assert str(shortage(arm[:30])).startswith("10 prompts x 3 seeds")
    assert str(shortage([])).startswith("0 prompts")
