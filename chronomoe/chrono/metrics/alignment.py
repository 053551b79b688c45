"""Does routing follow the controller, and does the controller know the load? Neither is true by construction.

    preference_t = each expert's share of step t's tokens, had there been no field (clean logits, same tokens)
    follow_t     = cos over experts of  (share_t - preference_t)  and  (1/E - preference_{t-1})
    knowledge_t  = - correlation over experts of  bias_t  and  preference_t
`follow` compares what the field did to these tokens with what other, earlier tokens showed to be needed; comparing the
load's change with the error it is measured from would read regression to the mean as obedience. `knowledge` sets the
bias in force against tokens it was not computed from. 1: the field lifts just the experts that are wanted too little;
0: a field that knows nothing of the load (a sham), and also no field at all; negative: it feeds the favourites.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity


def follow(share_LE: Tensor, preference_LE: Tensor, earlier_preference_LE: Tensor) -> Tensor:
    """[L], in [-1, 1]; all three are shares that sum to 1 over experts."""
    needed_LE = 1.0 / share_LE.shape[-1] - earlier_preference_LE
    return cosine_similarity(share_LE - preference_LE, needed_LE, dim=-1)


def knowledge(bias_LE: Tensor, preference_LE: Tensor) -> Tensor:
    """[L], in [-1, 1]. `bias_LE` is the one that was in force while the preference was read."""
    lifted_LE = bias_LE - bias_LE.mean(dim=-1, keepdim=True)
    wanted_LE = preference_LE - preference_LE.mean(dim=-1, keepdim=True)
    return -cosine_similarity(lifted_LE, wanted_LE, dim=-1)
