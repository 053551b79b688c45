"""The token before each token, across pieces of a sequence, padding and document borders.

    earlier_t = x of the last valid token before t; the carried one before the first; 0 where a document begins
Half of what RWKV's time mixing and channel mixing know of the past (arXiv 2305.13048); they carry one state each.

Axes: B batch, S sequence, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift(
    x_BSD: Tensor, carried_BD: Tensor | None, starts_BS: Tensor | None = None, valid_BS: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(earlier [B, S, D], what the next piece is to be given as `carried_BD`).

    carried_BD: of the piece before; None is the beginning, 0.
    starts_BS: True where a document begins.
    valid_BS: False at padding, which is passed over wherever it stands; what `earlier` holds there means nothing.
    """
    before_B1D = torch.zeros_like(x_BSD[:, :1]) if carried_BD is None else carried_BD[:, None].to(x_BSD.dtype)
    if valid_BS is not None:
        return shift_over_padding(torch.cat((before_B1D, x_BSD), dim=1), starts_BS, valid_BS)
    earlier_BSD = torch.cat((before_B1D, x_BSD[:, :-1]), dim=1)
    if starts_BS is not None:
        earlier_BSD = earlier_BSD.masked_fill(starts_BS[..., None], 0.0)
    return earlier_BSD, x_BSD[:, -1]


def shift_over_padding(xs_BSD: Tensor, starts_BS: Tensor | None, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Of the carried x and the sequence, S + 1 in all: each takes the last valid one's, the carried one being valid.
    Found by a running maximum of positions, so that shapes do not depend on where padding is."""
    position_S = torch.arange(xs_BSD.shape[1], device=xs_BSD.device)
    last_BS = (valid_BS * position_S[1:]).cummax(dim=1).values
    last_BS = torch.cat((torch.zeros_like(last_BS[:, :1]), last_BS), dim=1)
    taken_BSD = xs_BSD.gather(1, last_BS[..., None].expand_as(xs_BSD))
    earlier_BSD, carried_BD = taken_BSD[:, :-1], taken_BSD[:, -1]
    if starts_BS is not None:
        start_BS = (starts_BS * position_S[1:]).cummax(dim=1).values
        earlier_BSD = earlier_BSD.masked_fill((start_BS > last_BS[:, :-1])[..., None], 0.0)
        carried_BD = carried_BD.masked_fill((start_BS[:, -1:] > last_BS[:, -1:]), 0.0)
    return earlier_BSD, carried_BD
