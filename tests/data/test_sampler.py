from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.data.sampler import StepSampler, micro_batch_size, num_blocks, shuffled_index
from chronomoe.settings import InputError

seeds = st.integers(0, 2**32)


def steps(**arguments) -> list[list[list[int]]]:
    """The block indices of one rank as [step][micro-batch][sequence]."""
    defaults = {"num_blocks": 37, "batch_size": 12, "seed": 5, "max_steps": 6}
    sampler = StepSampler(**(defaults | arguments))
    batches = [batch.tolist() for batch in sampler]
    return [batches[i : i + sampler.accumulate] for i in range(0, len(batches), sampler.accumulate)]


@given(blocks=st.integers(1, 500), epoch=st.integers(0, 10**9), seed=seeds)
def test_every_epoch_reads_each_block_exactly_once(blocks, epoch, seed):
    positions = epoch * blocks + np.arange(blocks)
    assert sorted(shuffled_index(positions, blocks, seed)) == list(range(blocks))


@given(positions=st.lists(st.integers(0, 10**15), min_size=1, max_size=20), blocks=st.integers(1, 10**12), seed=seeds)
def test_the_index_depends_on_nothing_but_position_and_seed(positions, blocks, seed):
    together = shuffled_index(np.array(positions), blocks, seed)
    assert together.tolist() == [shuffled_index(position, blocks, seed) for position in positions]
    assert all(0 <= index < blocks for index in together)


def test_epochs_and_seeds_give_different_orders():
    orders = {
        tuple(shuffled_index(epoch * 50 + np.arange(50), 50, seed).tolist())
        for epoch in range(10)
        for seed in range(10)
    }
    assert len(orders) == 100


@pytest.mark.parametrize("blocks", [2, 3, 7, 16])
def test_every_block_is_equally_likely_at_every_position(blocks):
    num_seeds = 4000
    orders = np.stack([shuffled_index(np.arange(blocks), blocks, seed) for seed in range(num_seeds)])
    expected = num_seeds / blocks
    for position in range(blocks):
        counts = np.bincount(orders[:, position], minlength=blocks)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < blocks + 6 * np.sqrt(2 * blocks)  # mean blocks - 1, variance 2(blocks - 1)


def test_neighbours_in_the_text_are_not_neighbours_in_the_order():
    order = shuffled_index(np.arange(10_000), 10_000, 3)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).mean() < 0.002


@given(
    world=st.sampled_from([1, 2, 3, 6]),
    accumulate=st.sampled_from([1, 2]),
    blocks=st.integers(1, 100),
    seed=seeds,
)
def test_a_step_holds_the_same_blocks_however_it_is_dealt(world, accumulate, blocks, seed):
    alone = steps(num_blocks=blocks, seed=seed)
    ranks = [steps(num_blocks=blocks, seed=seed, rank=r, world=world, accumulate=accumulate) for r in range(world)]
    for step, ([reference], *dealt) in enumerate(zip(alone, *ranks, strict=True)):
        assert reference == [shuffled_index(step * 12 + i, blocks, seed) for i in range(12)]
        assert sorted(reference) == sorted(block for rank in dealt for batch in rank for block in batch)
        assert {len(batch) for rank in dealt for batch in rank} == {12 // (world * accumulate)}


@given(start=st.integers(0, 6), rank=st.integers(0, 1), accumulate=st.sampled_from([1, 3]))
def test_a_resumed_run_reads_the_rest_of_the_uninterrupted_one(start, rank, accumulate):
    whole = steps(rank=rank, world=2, accumulate=accumulate)
    assert steps(rank=rank, world=2, accumulate=accumulate, start_step=start) == whole[start:]


def test_the_length_counts_the_whole_run_also_after_resuming():
    sampler = StepSampler(num_blocks=9, batch_size=4, seed=0, max_steps=10, start_step=7, accumulate=2)
    assert len(sampler) == 20
    assert len(list(sampler)) == 6


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (8, 0), (9, 1), (16, 1), (17, 2)])
def test_a_block_needs_one_token_more_than_the_sequence(tokens, blocks):
    assert num_blocks(tokens, 8) == blocks


def test_an_uneven_deal_names_the_batch_size_that_would_be_even():
    with pytest.raises(InputError, match=r"data.batch_size=16 .* 3 devices x 2 .* data.batch_size=18"):
        micro_batch_size(16, world=3, accumulate=2)
