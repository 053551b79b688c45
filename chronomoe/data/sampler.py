"""Which block of text a run reads when: pure arithmetic of (seed, position), so that resuming needs no state.

A run is one endless row of positions. Epoch e covers positions [e·n, (e+1)·n) and reads each of the n blocks once, in
the order of a pseudorandom permutation computed point by point: a Feistel network (Luby and Rackoff 1988) over pairs
(left, right) of numbers below a = ceil(sqrt(n)),

    (left, right) <- (right, (left + F(right)) mod a),

repeated until it leaves a number below n (cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite
Domains"); a² exceeds n by so little that one pass is nearly always enough. Optimizer step s owns positions
[s·batch_size, (s+1)·batch_size), however they are dealt to devices and micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from chronomoe.settings import InputError

ROUNDS = 6


def num_blocks(num_tokens: int, seq_len: int) -> int:
    """Whole sequences in a row of tokens; each needs one token more than `seq_len`, shared with its successor."""
    return max(0, (num_tokens - 1) // seq_len)


def shuffled_index(position: Any, num_blocks: int, seed: int) -> Any:
    """The block read at `position` (an integer or an integer array, from 0); same shape, values in [0, num_blocks).

    Over each epoch of `num_blocks` positions it is a bijection; epochs and seeds give unrelated orders.
    """
    positions = np.asarray(position, dtype=np.uint64)
    side = np.uint64(math.isqrt(num_blocks - 1) + 1)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2**64 on purpose
        key = _mix(positions // np.uint64(num_blocks) ^ _mix(np.asarray(seed, dtype=np.uint64)))
        index = _permute(positions % np.uint64(num_blocks), key, side)
        while (outside := index >= num_blocks).any():
            index = np.where(outside, _permute(index, key, side), index)
    return index.astype(np.int64) if index.ndim else int(index)


def _permute(index: np.ndarray, key: np.ndarray, side: np.uint64) -> np.ndarray:
    left, right = np.divmod(index, side)
    for step in range(ROUNDS):
        left, right = right, (left + _mix(right ^ _mix(key + np.uint64(step)))) % side
    return left * side + right


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): every input bit changes half of the output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def micro_batch_size(batch_size: int, world: int, accumulate: int) -> int:
    """Sequences of one forward pass on one device, when `batch_size` are dealt evenly."""
    share = world * accumulate
    if batch_size % share:
        raise InputError(
            f"data.batch_size={batch_size} cannot be dealt to {world} devices x {accumulate} micro-batches: "
            f"set data.batch_size={-(-batch_size // share) * share}"
        )
    return batch_size // share


class StepSampler(Sampler[np.ndarray]):
    """The block indices of each micro-batch of rank `rank`, from `start_step` to `max_steps`.

    The length counts the whole run from step 0, as Lightning's progress does when it resumes.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        batch_size: int,
        seed: int,
        max_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        self.num_blocks = num_blocks
        self.batch_size = batch_size
        self.seed = seed
        self.max_steps = max_steps
        self.start_step = start_step
        self.rank = rank
        self.accumulate = accumulate
        self.shape = (accumulate, world, micro_batch_size(batch_size, world, accumulate))

    def __len__(self) -> int:
        return self.max_steps * self.accumulate

    def __iter__(self) -> Iterator[np.ndarray]:
        for step in range(self.start_step, self.max_steps):
            positions = step * self.batch_size + np.arange(self.batch_size).reshape(self.shape)
            yield from shuffled_index(positions[:, self.rank], self.num_blocks, self.seed)
