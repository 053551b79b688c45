"""Whole arms: what is concluded of decay, of rise, of nothing, of noise, of broken texts."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from chronomoe.decay.arm import Arm, measure_arm
from chronomoe.decay.attainable import Attainable
from chronomoe.decay.noise import ar1_noise
from chronomoe.decay.series import Series
from chronomoe.decay.verdict import conclusion
from chronomoe.settings import InputError
from scripts.decay_rates import pooled_alarms

K = np.arange(50)
REACHABLE = Attainable(-0.08, 0.76, 0.6, True, [])


def made(curve: np.ndarray, deviation: float = 0.04, prompts: int = 20, seeds: int = 3) -> list[Series]:
    rng = np.random.default_rng(0)
    return [
        Series(curve + deviation * ar1_noise(rng, curve.shape, 0.3), f"prompt {prompt}", seed)
        for prompt in range(prompts)
        for seed in range(seeds)
    ]


def measured(arm: list[Series]) -> Arm:
    return measure_arm(arm, REACHABLE.low, REACHABLE.high, np.random.default_rng(1))


def test_a_decay_is_named_timed_and_counted_within_seconds() -> None:
    start = time.process_time()
    found = measured(made(0.1 + 0.5 * np.exp(-K / 8)))
    assert time.process_time() - start < 20
    assert found.pooled is not None
    assert found.pooled.verdict == "exponential"
    assert found.pooled.by_tau.chunks == pytest.approx(8 * np.log(2), rel=0.06)
    assert found.pooled.by_threshold.chunks == pytest.approx(-8 * np.log(0.2 / 0.5), rel=0.06)
    assert found.survival is not None
    assert found.survival.median.estimate == pytest.approx(8 * np.log(2.5) + 2, abs=2)
    assert found.verdicts["exponential"] > 55
    assert not any(cliff is not None and cliff.found for cliff in found.cliffs)
    line = conclusion(found, REACHABLE)
    assert line.startswith("exponential decay from 0.")
    assert "60 of 60 runs lost half, 0 censored" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (np.full(50, 0.6), "stable: no change that stands against noise and prompts; median not reached (0 of 60 runs"),
        (0.6 - 0.004 * K, "linear decay from 0.598 to 0.402; median not reached (0 of 60 runs lost half, 60 censored"),
        (0.2 + 0.008 * K, "linear rise from 0.198 to 0.59; median not reached"),
        (0.6 - 0.35 * (K >= 30), "step decay from 0.599 to 0.248; median 30 chunks [30, 30] (60 of 60 runs"),
        (0.1 + 0.5 * np.exp(-K / 40), "half-life not identifiable: tau may be"),
    ],
)
def test_an_arm_is_concluded_to_be_what_it_is(curve: np.ndarray, said: str) -> None:
    assert said in conclusion(measured(made(curve)), REACHABLE)


def test_what_never_moves_is_stable_with_its_frozen_inputs_named() -> None:
    found = measured(made(np.full(50, 0.6), deviation=0.0))
    frozen = Attainable(0.6, 0.6, 0.6, False, ["m", "q"])
    assert conclusion(found, frozen) == "stable, variance 0; frozen inputs: m, q"
    assert found.verdicts == {"stable": 60}


def test_half_that_no_input_can_give_is_said_to_be_out_of_reach() -> None:
    found = measured(made(np.full(50, 0.64)))
    line = conclusion(found, Attainable(0.3357, 0.64, 0.6403, False, ["q"]))
    assert "half is out of reach: the inputs allow 0.336 to 0.64, half is 0.32" in line


def test_noise_that_crosses_half_by_itself_is_not_timed() -> None:
    found = measured(made(np.full(50, 0.4), deviation=0.15))
    assert found.survival is None
    assert "time to half not identifiable: noise is 0.3" in conclusion(found, REACHABLE)


def test_texts_that_repeat_themselves_are_not_interpreted() -> None:
    arm = [
        Series(series.value_K, series.prompt, series.seed, "degenerate", K >= 4) for series in made(np.full(50, 0.6))
    ]
    assert conclusion(measured(arm), REACHABLE).startswith("degenerate/untrained: not interpretable; 60 of 60")


def test_runs_too_short_to_fit_are_said_to_be() -> None:
    found = measured(made(np.full(7, 0.6), prompts=2))
    assert found.pooled is None
    line = conclusion(found, REACHABLE)
    assert line == "not identifiable: no series has 10 chunks (2 prompts x 3 seeds; intervals need 20 x 3)"


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 10, 11])
def test_any_length_is_measured_without_a_warning(chunks: int) -> None:
    with np.errstate(all="raise", under="ignore"):
        found = measured(made(0.6 - 0.01 * np.arange(chunks), prompts=3))
    assert len(found.shapes) == len(found.cliffs) == len(found.documented) == 9


def test_runs_of_unequal_length_that_end_themselves_are_counted() -> None:
    arm = [
        Series(series.value_K[: 20 + index % 30], series.prompt, series.seed, "eos" if index % 2 else "K")
        for index, series in enumerate(made(np.full(50, 0.6)))
    ]
    found = measured(arm)
    assert found.survival is not None
    assert found.survival.table.stopped_BT.sum() == 30
    assert found.survival.stopped_incidence_T[-1] > 0.4
    assert "0 of 60 runs lost half, 30 censored, 30 ended themselves" in conclusion(found, REACHABLE)


def test_the_same_seed_gives_the_same_numbers() -> None:
    arm = made(0.2 + 0.3 * np.exp(-K / 12), prompts=3)
    left, right = measured(arm), measured(arm)
    assert left.cliffs == right.cliffs
    assert [shape.known for shape in left.shapes if shape] == [shape.known for shape in right.shapes if shape]


def test_prompts_that_drift_apart_are_no_trend() -> None:
    by_aicc, used = pooled_alarms(1.0)
    assert by_aicc > 0.15
    assert used <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_a_small_fall_is_a_decay_of_undetermined_shape() -> None:
    found = measured(made(0.6 - 0.12 * K / 49, prompts=4, seeds=1))
    assert found.pooled is not None
    assert found.pooled.verdict == "undetermined"
    line = conclusion(found, REACHABLE)
    assert line.startswith("decay from 0.")
    assert "shape undetermined" in line
    assert line.endswith("(4 prompts x 1 seeds; intervals need 20 x 3)")


def test_one_prompt_speaks_for_itself_only() -> None:
    found = measured(made(0.1 + 0.5 * np.exp(-K / 8), prompts=1))
    assert found.pooled is found.effect is None
    line = conclusion(found, REACHABLE)
    assert "one prompt says nothing of others; its series by themselves: 3 exponential" in line
    assert "1 prompts x 3 seeds" in line


def test_nothing_here_needs_torch() -> None:
    code = "import sys, chronomoe.decay.verdict; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_arm_without_series_is_refused() -> None:
    with pytest.raises(InputError, match="no series"):
        measure_arm([], 0.0, 1.0, np.random.default_rng(0))
