from __future__ import annotations

import numpy as np
import pytest

from chronomoe.study.projection import project

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(50, 8), (6, 40)], ids=["more points", "more dimensions"])
def test_the_projection_is_that_of_a_singular_value_decomposition(shape: tuple[int, int]):
    points = RNG.standard_normal(shape) * np.linspace(3, 1, shape[1]) + 5
    found = project(points)
    assert found is not None
    u, s, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.coordinates_PK), np.abs(u[:, :2] * s[:2]), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.share_K, s[:2] ** 2 / (s**2).sum(), rtol=1e-9)


def test_distances_in_a_plane_are_kept():
    plane = RNG.standard_normal((20, 2)) @ np.linalg.qr(RNG.standard_normal((5, 2)))[0].T
    found = project(plane)
    assert found is not None
    assert found.share_K.sum() == pytest.approx(1)
    between = [np.linalg.norm(points[:, None] - points[None], axis=-1) for points in (plane, found.coordinates_PK)]
    np.testing.assert_allclose(*between, atol=1e-9)


def test_the_sign_does_not_depend_on_the_order_of_the_points():
    points = RNG.standard_normal((30, 4))
    forwards, backwards = project(points), project(points[::-1])
    assert forwards is not None
    assert backwards is not None
    np.testing.assert_allclose(forwards.coordinates_PK, backwards.coordinates_PK[::-1], atol=1e-9)


@pytest.mark.parametrize("points", [np.ones((9, 4)), np.outer(np.arange(9.0), np.ones(4)), np.arange(5.0)[:, None]])
def test_points_on_a_line_have_no_plane(points: np.ndarray):
    assert project(points) is None
