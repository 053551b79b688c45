"""Spherical k-means on clusters that are known, and transition probabilities of chains that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from chronomoe.session.clock_heads import DECAY_J, MID
from chronomoe.session.codebook import Transitions, codes_of, nearest, spherical_kmeans
from chronomoe.settings import InputError


def clusters(num_codes: int, per_code: int = 60, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label_N = np.repeat(np.arange(num_codes), per_code)
    x_NX = np.eye(16)[label_N] + noise * rng.standard_normal((len(label_N), 16))
    return x_NX / np.linalg.norm(x_NX, axis=1, keepdims=True), label_N


@pytest.mark.parametrize("num_codes", [2, 4, 8])
def test_separate_clusters_get_a_code_each(num_codes: int) -> None:
    x_NX, label_N = clusters(num_codes)
    centre_BX = spherical_kmeans(x_NX, num_codes, seed=3)
    np.testing.assert_allclose(np.linalg.norm(centre_BX, axis=1), 1.0)
    code_N = codes_of(x_NX, centre_BX)
    pairs = set(zip(label_N.tolist(), code_N.tolist(), strict=True))
    assert len(pairs) == len({code for _, code in pairs}) == num_codes
    assert [nearest(x_X, centre_BX) for x_X in x_NX[:5]] == code_N[:5].tolist()


def test_no_step_of_the_algorithm_would_improve_its_result() -> None:
    x_NX = np.random.default_rng(1).standard_normal((500, 8))
    x_NX /= np.linalg.norm(x_NX, axis=1, keepdims=True)
    centre_BX = spherical_kmeans(x_NX, 8, seed=0)
    code_N = codes_of(x_NX, centre_BX)
    for code in range(8):
        mean_X = x_NX[code_N == code].sum(axis=0)
        assert mean_X @ centre_BX[code] / np.linalg.norm(mean_X) > 0.999


def test_same_text_and_seed_same_codebook() -> None:
    x_NX, _ = clusters(4, noise=0.5)
    assert np.array_equal(spherical_kmeans(x_NX, 8, seed=2), spherical_kmeans(x_NX, 8, seed=2))


def test_more_codes_than_different_tokens_is_an_error() -> None:
    with pytest.raises(InputError, match="3 tokens that differ"):
        spherical_kmeans(np.eye(3)[np.arange(60) % 3], 4, seed=0)


def run(codes: list[int], num_codes: int) -> np.ndarray:
    transitions = Transitions(num_codes)
    return np.array([transitions.follow(code) for code in codes])


@pytest.mark.parametrize("num_codes", [4, 8, 16])
def test_independent_codes_read_one_over_their_number(num_codes: int) -> None:
    codes = np.random.default_rng(num_codes).integers(num_codes, size=20_000).tolist()
    assert run(codes, num_codes)[500:].mean() == pytest.approx(1 / num_codes, rel=0.03)


def test_a_cycle_is_expected() -> None:
    q = run([t % 3 for t in range(400)], 8)
    assert q[200:].min() > 0.9


def test_a_step_is_judged_before_it_is_counted() -> None:
    q = run([0, 1, 0, 1], 4)
    assert math.isnan(q[0])
    decayed = DECAY_J[MID]
    assert q[1:] == pytest.approx([0.25, 0.25, (decayed + 0.25) / (decayed + 1)])
