"""The inverse of I - P for many strictly lower triangular P at once, by products.

    [A 0; -P B]^-1 = [A^-1 0; B^-1 P A^-1 B^-1]
Neighbouring inverted blocks of the diagonal, A^-1 and B^-1, and the block P between them give the next larger one:
two products a round. Only blocks of 4 are inverted by (I + P)(I + P^2), which with further powers would do for any
size: where P repeats itself they grow like binomials and cancel (64 equal keys: up to 4e17).

Axes: X matrices, C rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def invert_unit_lower(strict_XCC: Tensor) -> Tensor:
    """(I - P)^-1 of strictly lower P, C a power of two."""
    size = strict_XCC.shape[-1]
    inverse_XCC = torch.zeros_like(strict_XCC, memory_format=torch.contiguous_format)
    width = min(size, 4)
    blocks, inverse_blocks = (diagonal_blocks(matrix, size // width, width) for matrix in (strict_XCC, inverse_XCC))
    P = blocks.reshape(-1, width, width)
    eye = torch.eye(width, dtype=P.dtype, device=P.device)
    inverse_blocks.copy_(((eye + P) @ (eye + P @ P)).view(blocks.shape))  # P^4 = 0
    while width < size:
        blocks, inverse_blocks = (
            diagonal_blocks(matrix, size // (2 * width), 2 * width) for matrix in (strict_XCC, inverse_XCC)
        )
        first = inverse_blocks[..., :width, :width].reshape(-1, width, width)
        second = inverse_blocks[..., width:, width:].reshape(-1, width, width)
        between = blocks[..., width:, :width]
        inverse_blocks[..., width:, :width] = (second @ between.reshape(first.shape) @ first).view(between.shape)
        width *= 2
    return inverse_XCC


def diagonal_blocks(matrix_XCC: Tensor, count: int, width: int) -> Tensor:
    """A view, [X, count, width, width]."""
    grid = (count, width)
    return matrix_XCC.unflatten(2, grid).unflatten(1, grid).diagonal(dim1=1, dim2=3).movedim(-1, 1)
