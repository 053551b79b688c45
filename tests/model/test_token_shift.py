"""The token before each token against a loop over tokens.

Axes: B batch, S sequence, D dim.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.token_shift import token_shift


def by_loop(
    x_BSD: Tensor, carried_BD: Tensor, starts_BS: Tensor | None, valid_BS: Tensor | None
) -> tuple[Tensor, Tensor]:
    earlier_BSD, carried_BD = torch.zeros_like(x_BSD), carried_BD.clone()
    for row in range(x_BSD.shape[0]):
        for t in range(x_BSD.shape[1]):
            if starts_BS is not None and starts_BS[row, t]:
                carried_BD[row] = 0
            earlier_BSD[row, t] = carried_BD[row]
            if valid_BS is None or valid_BS[row, t]:
                carried_BD[row] = x_BSD[row, t]
    return earlier_BSD, carried_BD


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 9), seed=st.integers(0, 10**6), documents=st.booleans(), padding=st.booleans())
def test_it_is_the_last_valid_token_of_the_document(length: int, seed: int, documents: bool, padding: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_BSD, carried_BD = torch.randn(3, length, 2, generator=generator), torch.randn(3, 2, generator=generator)
    starts_BS = torch.rand(3, length, generator=generator) < 0.3 if documents else None
    valid_BS = torch.rand(3, length, generator=generator) < 0.6 if padding else None
    found = token_shift(x_BSD, carried_BD, starts_BS, valid_BS)
    for one, other in zip(found, by_loop(x_BSD, carried_BD, starts_BS, valid_BS), strict=True):
        if valid_BS is not None and one.dim() == 3:
            one, other = one[valid_BS], other[valid_BS]
        assert torch.equal(one, other)


def test_nothing_carried_is_zero() -> None:
    x_BSD = torch.randn(2, 3, 4)
    for valid_BS in (None, torch.ones(2, 3, dtype=torch.bool)):
        earlier_BSD, last_BD = token_shift(x_BSD, None, valid_BS=valid_BS)
        assert torch.equal(earlier_BSD, torch.cat((torch.zeros(2, 1, 4), x_BSD[:, :-1]), dim=1))
        assert torch.equal(last_BD, x_BSD[:, -1])
