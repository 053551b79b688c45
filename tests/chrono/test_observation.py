"""What a step's observation is, over micro-batches and ranks, and how the load is remembered."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.observation import gather_and_clear, remember, share
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sensor import UNIT

samples = st.lists(st.lists(st.integers(0, 500), min_size=4, max_size=4).filter(any), min_size=1, max_size=12)


def test_gathering_returns_the_reading_and_zeroes_the_sensor() -> None:
    sensor = torch.stack(
        (torch.arange(6).view(2, 3), torch.arange(6).view(2, 3) * UNIT // 2, torch.zeros(2, 3)), dim=-1
    ).long()
    observation = gather_and_clear(sensor)
    assert observation.tokens_per_expert_LE.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert observation.gate_mass_LE.tolist() == [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]
    assert observation.gate_mass_LE.dtype == torch.float64
    assert not sensor.any()


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_an_observation_is_the_same_however_the_step_is_split(
    tiny_model: Callable[..., LanguageModel], draw_ids: Callable[..., Tensor], micro_batch: int
) -> None:
    model, ids_BS = tiny_model().double().train(), draw_ids(8, 12)
    observations = []
    for size in (8, micro_batch):
        for part_BS in ids_BS.split(size):
            model(part_BS)
        observations.append(gather_and_clear(model.sensor_LEC))
    whole, split = observations
    assert torch.equal(split.tokens_per_expert_LE, whole.tokens_per_expert_LE)
    assert torch.equal(split.gate_mass_LE, whole.gate_mass_LE)


def observe_as_rank(rank: int, store: Path, readings: Tensor, results: Queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    sensor = readings[rank].clone()
    observation = gather_and_clear(sensor)
    results.put([tensor.tolist() for tensor in observation[:3]] + [bool(sensor.any())])
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_with_different_data_observe_the_same_sum(tmp_path: Path) -> None:
    readings = torch.randint(1000, (2, 2, 3, 4), generator=torch.Generator().manual_seed(0))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(target=observe_as_rank, args=(rank, tmp_path / "store", readings, results)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    first, second = results.get(timeout=60), results.get(timeout=60)
    for rank in ranks:
        rank.join(timeout=60)
    alone = gather_and_clear(readings.sum(dim=0))
    assert first == second == [*(tensor.tolist() for tensor in alone[:3]), False]


def test_shares_sum_to_one_and_an_idle_layer_reads_the_fair_share() -> None:
    shares = share(torch.tensor([[1, 2, 1, 0], [0, 0, 0, 0]]))
    assert shares.tolist() == [[0.25, 0.5, 0.25, 0.0], [0.25] * 4]
    assert shares.dtype == torch.float32


@given(samples=samples, half_life=st.floats(0.5, 50))
def test_memory_reads_the_bias_corrected_average_computed_the_long_way(
    samples: list[list[int]], half_life: float
) -> None:
    memory_LE = torch.zeros(1, 4, dtype=torch.float64)
    for now in range(len(samples)):
        memory_LE = remember(memory_LE, torch.tensor([samples[now]]), half_life)
        weights = [0.5 ** ((now - then) / half_life) for then in range(now + 1)]
        average = sum(w * torch.tensor(s, dtype=torch.float64) for w, s in zip(weights, samples, strict=False))
        corrected = average / sum(weights)
        torch.testing.assert_close(share(memory_LE)[0], (corrected / corrected.sum()).float())


@given(sample=st.lists(st.integers(0, 500), min_size=4, max_size=4).filter(any), half_life=st.floats(0.5, 50))
def test_the_first_reading_is_the_first_sample_and_a_constant_stays_constant(
    sample: list[int], half_life: float
) -> None:
    memory_LE, sample_LE = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([sample])
    for _ in range(30):
        memory_LE = remember(memory_LE, sample_LE, half_life)
        torch.testing.assert_close(share(memory_LE), share(sample_LE))


def test_a_sample_counts_half_after_one_half_life() -> None:
    memory_LE = remember(torch.zeros(1, 2).double(), torch.tensor([[64, 0]]), 3.0)
    for _ in range(3):
        memory_LE = remember(memory_LE, torch.zeros(1, 2), 3.0)
    assert memory_LE[0, 0].item() == pytest.approx(32.0)


def test_without_a_half_life_every_step_counts_alike() -> None:
    memory_LE = torch.zeros(1, 2).double()
    for _ in range(1000):
        memory_LE = remember(memory_LE, torch.tensor([[3, 1]]), None)
    assert memory_LE.tolist() == [[3000.0, 1000.0]]
