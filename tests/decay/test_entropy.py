"""The change of an entropy by hand, its labels, and its interval over prompts."""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.decay.entropy import evolution, start_minus_end


def test_start_and_end_are_thirty_percent_each() -> None:
    assert start_minus_end(np.arange(10.0)) == pytest.approx(1 - 8)
    assert start_minus_end(np.arange(50.0)) == pytest.approx(7 - 42)
    assert start_minus_end(np.array([0.4])) == 0.0


@pytest.mark.parametrize(
    ("end", "label"), [(0.5, "collapse"), (0.62, "stable"), (0.66, "stable"), (0.72, "increasing")]
)
def test_labels_are_the_documented_ones(end: float, label: str) -> None:
    rng = np.random.default_rng(0)
    step = np.where(np.arange(40) < 20, 0.64, end)
    values = [step + 0.01 * rng.normal(size=40) for _ in range(12)]
    found = evolution(values, np.arange(12) // 3)
    assert found.label == label
    assert found.change.estimate == pytest.approx(0.64 - end, abs=0.01)
    assert found.change.low is not None
    assert found.change.high is not None
    assert found.change.low <= found.change.estimate <= found.change.high


def test_the_slope_is_per_chunk() -> None:
    found = evolution([0.9 - 0.004 * np.arange(30), 0.8 - 0.002 * np.arange(50)], np.arange(2))
    assert found.slope.estimate == pytest.approx(-0.003)
    assert (found.slope.low, found.slope.high) == (pytest.approx(-0.004), pytest.approx(-0.002))
