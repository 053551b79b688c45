"""The three memories of phi against the closed form of an exponential average.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import io

import torch
from torch import Tensor

from chronomoe.chrono.phi_memory import DECAYS, Remembered, read, start, step

NAN = float("nan")


def remember(readings: list[Tensor]) -> Remembered:
    state = start(*readings[0].shape)
    for reading in readings:
        state = step(state, reading)
    return read(state)


def test_the_first_reading_is_the_first_sample() -> None:
    phi_LE = torch.tensor([[0.3, -0.2], [0.0, 1.0]])
    remembered = remember([phi_LE])
    for memory_LE in remembered[:3]:
        torch.testing.assert_close(memory_LE, phi_LE)
    torch.testing.assert_close(remembered.degradation_LE, torch.zeros(2, 2))


def test_a_constant_is_remembered_as_itself_at_every_step() -> None:
    state, phi_LE = start(1, 3), torch.tensor([[0.7, -0.1, 0.02]])
    for _ in range(300):
        state = step(state, phi_LE)
        for memory_LE in read(state)[:3]:
            torch.testing.assert_close(memory_LE, phi_LE, rtol=1e-5, atol=0)


def test_memories_are_exponential_averages_of_the_readings_an_expert_had() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(80, 2, 3, generator=generator)
    samples[torch.rand(80, 2, 3, generator=generator) < 0.3] = NAN
    remembered = remember(list(samples))
    for decay, memory_LE in zip(DECAYS, remembered[:3], strict=True):
        for layer in range(2):
            for expert in range(3):
                had = [v for v in samples[:, layer, expert].double().tolist() if v == v]
                weights = [decay ** (len(had) - 1 - i) for i in range(len(had))]
                expected = sum(w * v for w, v in zip(weights, had, strict=True)) / sum(weights)
                assert abs(memory_LE[layer, expert].item() - expected) < 1e-4


def test_an_expert_without_tokens_keeps_what_it_said_and_ages() -> None:
    seen = torch.tensor([[0.5, NAN]])
    remembered = remember([seen, torch.tensor([[NAN, NAN]]), torch.tensor([[NAN, 0.1]])])
    assert remembered.stale_steps_LE.tolist() == [[2, 0]]
    torch.testing.assert_close(remembered.slow_LE, torch.tensor([[0.5, 0.1]]))
    assert remember([seen]).mid_LE[0, 1].isnan()
    assert remember([seen]).stale_steps_LE.tolist() == [[0, 1]]


def test_degradation_is_negative_while_agreement_falls_and_returns_to_zero() -> None:
    falling = remember([torch.tensor([[0.8]])] * 50 + [torch.tensor([[0.2]])] * 20)
    assert -0.6 < falling.degradation_LE.item() < -0.2
    settled = remember([torch.tensor([[0.8]])] * 50 + [torch.tensor([[0.2]])] * 4000)
    assert abs(settled.degradation_LE.item()) < 1e-3


def test_a_step_leaves_the_state_it_was_given_and_a_saved_state_goes_on_bit_for_bit() -> None:
    first, second = torch.tensor([[0.4, NAN]]), torch.tensor([[0.1, 0.9]])
    state = step(start(1, 2), first)
    copies = {name: tensor.clone() for name, tensor in state.items()}
    went_on = step(state, second)
    assert all(torch.equal(state[name], copies[name]) for name in state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    resumed = step(torch.load(file, weights_only=True), second)
    assert all(torch.equal(resumed[name], went_on[name]) for name in went_on)
