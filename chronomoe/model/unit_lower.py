"""The inverse of I - P for many strictly lower triangular P at once, by products.

    [A 0; -P B]^-1 = [A^-1 0; B^-1 P A^-1 B^-1]
Neighbouring inverted blocks of the diagonal, A^-1 and B^-1, and the block P between them give the next larger one:
log2 C rounds of two products. Not (I + P)(I + P^2)(I + P^4)..., which needs no blocks: where P repeats itself its
powers grow like binomials and cancel (64 equal keys: up to 4e17).

Axes: X matrices, C rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def invert_unit_lower(strict_XCC: Tensor) -> Tensor:
    """(I - P)^-1 of strictly lower P, C a power of two."""
    size = strict_XCC.shape[-1]
    inverse_XCC = torch.eye(size, dtype=strict_XCC.dtype, device=strict_XCC.device).repeat(len(strict_XCC), 1, 1)
    width = 1
    while width < size:
        pairs = (size // (2 * width), 2, width)
        strict, inverse = (
            matrix.unflatten(2, pairs).unflatten(1, pairs).diagonal(dim1=1, dim2=4).movedim(-1, 1)
            for matrix in (strict_XCC, inverse_XCC)
        )  # [X, pairs, 2, width, 2, width]
        first, second = (inverse[:, :, n, :, n].reshape(-1, width, width) for n in (0, 1))
        between = strict[:, :, 1, :, 0].reshape(-1, width, width)
        inverse[:, :, 1, :, 0] = (second @ between @ first).view(len(strict_XCC), -1, width, width)
        width *= 2
    return inverse_XCC
