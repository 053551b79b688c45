"""The clocks against brute-force weights, independent draws, and texts that move.

Axes: T tokens, X observation.
"""

from __future__ import annotations

import numpy as np
import pytest

from chronomoe.session.clock_heads import (
    DECAY_J,
    FAST,
    HALF_LIVES,
    LEAST_UPDATES,
    MID,
    SLOW,
    ClockHeads,
    null_distance,
    observation,
    signature,
    weight_overlap,
)
from chronomoe.settings import RunFailed


def run(x_TX: np.ndarray) -> tuple[ClockHeads, np.ndarray]:
    """The clocks after a text, and (d_meso, d_macro) of every token from the first defined one on."""
    clocks, distances = ClockHeads(x_TX.shape[1]), []
    for x_X in x_TX:
        clocks.update(x_X)
        if clocks.updates >= LEAST_UPDATES:
            distances.append(clocks.distances())
    return clocks, np.array(distances)


def independent(length: int, width: int = 128, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    x_TX = np.random.default_rng(seed).standard_normal((length, width))
    x_TX[:, 0] += mean
    return x_TX / np.linalg.norm(x_TX, axis=1, keepdims=True)


def test_table_of_decays() -> None:
    assert pytest.approx([0.870551, 0.986233, 0.998615], abs=1e-6) == DECAY_J
    assert pytest.approx([14.45, 144.27, 1442.70], abs=5e-3) == (1 + DECAY_J) / (1 - DECAY_J)


@pytest.mark.parametrize("updates", [1, 2, 32, 500, 5000])
def test_overlap_of_weights_is_the_sum_of_their_products(updates: int) -> None:
    age_T = np.arange(updates)[::-1]
    weight_JT = (1 - DECAY_J)[:, None] * DECAY_J[:, None] ** age_T
    weight_JT /= weight_JT.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weight_overlap(updates), weight_JT @ weight_JT.T, rtol=1e-9)
    if updates > 1:
        for pair in ((FAST, MID), (MID, SLOW)):
            difference_T = weight_JT[pair[0]] - weight_JT[pair[1]]
            assert null_distance(*pair, updates) == pytest.approx(np.linalg.norm(difference_T), rel=1e-6)


def test_asymptotes_of_the_null_distance() -> None:
    assert null_distance(FAST, MID, 50_000) == pytest.approx(0.22569, abs=1e-5)
    assert null_distance(MID, SLOW, 50_000) == pytest.approx(0.07144, abs=1e-5)


def test_a_clock_is_the_weighted_mean_of_what_it_saw() -> None:
    x_TX = independent(70, width=6)
    clocks, _ = run(x_TX)
    for decay, mean_X in zip(DECAY_J, clocks.mean_JX, strict=True):
        weight_T = decay ** np.arange(len(x_TX))[::-1]
        np.testing.assert_allclose(mean_X, weight_T @ x_TX / weight_T.sum(), rtol=1e-10)


@pytest.mark.parametrize("clock", [FAST, MID, SLOW])
def test_after_a_half_life_half_of_what_was_is_forgotten(clock: int) -> None:
    clocks = ClockHeads(2)
    for _ in range(20_000):
        clocks.update(np.array([1.0, 0.0]))
    for _ in range(int(HALF_LIVES[clock])):
        clocks.update(np.array([0.0, 1.0]))
    np.testing.assert_allclose(clocks.mean_JX[clock], [0.5, 0.5], rtol=1e-4)


def test_independent_tokens_read_one() -> None:
    distances = np.concatenate([run(independent(2500, seed=seed))[1] for seed in range(4)])
    rms = np.sqrt((distances**2).mean(axis=0))
    np.testing.assert_allclose(rms, 1.0, rtol=0.05)


def test_independent_tokens_read_one_from_the_first_defined_distance_on() -> None:
    first = np.array([run(independent(LEAST_UPDATES, seed=seed))[1][0] for seed in range(300)])
    np.testing.assert_allclose(np.sqrt((first**2).mean(axis=0)), 1.0, rtol=0.05)


def test_autocorrelated_tokens_read_more() -> None:
    noise_TX, x_TX = np.random.default_rng(1).standard_normal((2, 2000, 128))
    for t in range(1, len(x_TX)):
        x_TX[t] = 0.9 * x_TX[t - 1] + noise_TX[t]
    rms = np.sqrt((run(x_TX / np.linalg.norm(x_TX, axis=1, keepdims=True))[1] ** 2).mean(axis=0))
    assert 2.4 < rms[0] < 3.4
    assert 3.4 < rms[1] < 5.0


def test_a_shift_is_seen_by_the_meso_before_the_macro_distance() -> None:
    x_TX = np.concatenate([independent(1000, mean=0.0), independent(100, seed=1, mean=12.0)])
    _, distances = run(x_TX)
    after = distances[-100:]
    meso, macro = (int(np.argmax(after[:, i] > 2.0)) for i in (0, 1))
    assert (after.max(axis=0) > 2.0).all()
    assert (after[0] < 2.0).all()
    assert meso < macro


@pytest.mark.parametrize("mean", [0.0, 4.0, 12.0])
def test_confidence_is_the_length_of_the_true_mean_direction(mean: float) -> None:
    truth = float(np.linalg.norm(independent(200_000, width=32, mean=mean).mean(axis=0)))
    found = np.array([run(independent(1500, width=32, seed=s, mean=mean))[0].confidences() for s in range(1, 13)])
    if mean:
        np.testing.assert_allclose(found[:, [MID, SLOW]].mean(axis=0), truth, rtol=0.05)
        assert found[:, FAST].mean() == pytest.approx(truth, rel=0.15)
    else:
        assert found[:, SLOW].mean() < 0.1


def test_fill_grows_to_one_half_in_a_half_life() -> None:
    clocks, _ = run(independent(50, width=4))
    assert clocks.fill()[MID] == pytest.approx(0.5)


def test_distances_before_enough_tokens_are_an_error() -> None:
    clocks, _ = run(independent(LEAST_UPDATES - 1, width=4))
    with pytest.raises(RunFailed, match=r"d_meso.*31 tokens of the 32"):
        clocks.distances()


def test_tokens_that_never_differ_have_no_distance() -> None:
    with pytest.raises(RunFailed, match="d_meso: every token looks the same"):
        run(np.tile(np.array([1.0, 0.0]), (40, 1)))


def test_signature_has_unit_norm_and_hellinger_distances() -> None:
    p_SLE = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3))
    u_SU = signature(p_SLE)
    np.testing.assert_allclose((u_SU**2).sum(axis=1), 1.0)
    hellinger_L = np.sqrt(((np.sqrt(p_SLE[0]) - np.sqrt(p_SLE[1])) ** 2).sum(axis=-1))
    np.testing.assert_allclose(((u_SU[0] - u_SU[1]) ** 2).sum(), (hellinger_L**2).mean())


def test_observations_have_unit_norm_and_weigh_both_halves_the_same() -> None:
    rng = np.random.default_rng(0)
    x_SX = observation(rng.normal(size=(7, 5)), rng.random((7, 6)), rng.normal(size=5), rng.random(6))
    np.testing.assert_allclose((x_SX[:, :5] ** 2).sum(axis=1), 0.5)
    np.testing.assert_allclose((x_SX[:, 5:] ** 2).sum(axis=1), 0.5)


def test_saved_clocks_go_on_as_they_were() -> None:
    x_TX = independent(90, width=6)
    one, _ = run(x_TX[:60])
    two = ClockHeads(6)
    two.load_dict(one.to_dict())
    for clocks in (one, two):
        for x_X in x_TX[60:]:
            clocks.update(x_X)
    assert one.distances() == two.distances()
    assert np.array_equal(one.confidences(), two.confidences())
