"""Inverses of unit lower triangular matrices against torch's triangular solver.

Axes: X matrices, C rows and columns.
"""

from __future__ import annotations

import pytest
import torch

from chronomoe.model.unit_lower import invert_unit_lower


@pytest.mark.parametrize("size", [1, 2, 4, 32, 128])
def test_it_is_the_inverse(size: int) -> None:
    drawn = torch.randn(5, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    strict_XCC = (drawn / size**0.5).tril(-1)
    eye = torch.eye(size, dtype=torch.float64)
    expected = torch.linalg.solve_triangular(eye - strict_XCC, eye.expand_as(strict_XCC), upper=False)
    torch.testing.assert_close(invert_unit_lower(strict_XCC), expected, rtol=1e-10, atol=1e-10)


def test_equal_keys_cost_no_digits() -> None:
    """I - P is all ones below: the inverse has entries 0, 1 and -1, while P^32 has entries of 10^17."""
    strict_XCC = -torch.ones(2, 64, 64).tril(-1)
    expected = torch.eye(64) - torch.diag(torch.ones(63), -1)
    assert torch.equal(invert_unit_lower(strict_XCC), expected.expand(2, -1, -1))


def test_a_part_of_a_larger_matrix_is_read_where_it_lies() -> None:
    whole = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)).tril(-1)
    part = whole[:, 8:, 8:]
    assert torch.equal(invert_unit_lower(part), invert_unit_lower(part.contiguous()))
