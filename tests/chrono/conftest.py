"""Settings of every law as its YAML gives them, and made-up observations.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from chronomoe.chrono.clocks import ClockSettings
from chronomoe.chrono.laws.law import ChronoSettings, ControlSettings
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.probes import BINS
from chronomoe.config import parse, register
from chronomoe.model.sensor import to_fixed_point

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def law_settings(recorded_run: Callable[..., Path]) -> Callable[..., ChronoSettings]:
    """`law_settings(law, temperature=…, knob=…, **overrides)`: the law's file, with short clocks (2 and 4 steps) unless
    they are given."""
    register()
    loaded: dict[str, ChronoSettings] = {}
    needs = {law: [f"chrono.trace={recorded_run()}"] for law in ("replay", "sham")}

    def make(law: str, *, temperature: str = "off", knob: str = "fixed", **overrides: object) -> ChronoSettings:
        if law not in loaded:
            with initialize_config_dir(str(CONFIGS), version_base=None):
                loaded[law] = parse(compose("train", [f"chrono={law}", *needs.get(law, [])])).chrono
        settings = loaded[law]
        if isinstance(settings, ControlSettings):
            heat = dataclasses.replace(settings.temperature, kind=temperature)
            clocks = ClockSettings(micro_period=2, macro_period=4)
            turned = dataclasses.replace(settings.knob, kind=knob, run_steps=40)
            overrides = {"clocks": clocks, "temperature": heat, "schedule_steps": 40, "knob": turned} | overrides
        return dataclasses.replace(settings, **overrides)

    return make


def wandering_phi(counts_LE: Tensor, dim: int = 4) -> Tensor:
    """A reading of phi that is a function of the load: [L, E, 5 + 2 dim]."""
    cosine_LE = to_fixed_point(torch.sin(counts_LE.double()))
    ones_LE = torch.ones_like(counts_LE)
    vectors_LEC = to_fixed_point(torch.cos(counts_LE[..., None] * torch.arange(1.0, 1 + 2 * dim)))
    return torch.cat((torch.stack((ones_LE, cosine_LE, ones_LE, cosine_LE, ones_LE), -1), vectors_LEC), -1)


@pytest.fixture(scope="session")
def observe() -> Callable[..., Observation]:
    """The observation that a table of top-2 assignments stands for; every assignment weighs 1/2 unless weights are
    given. Its prices are as they would be: the more tokens want an expert, the higher."""

    def make(counts_LE: Tensor, weights_LE: Tensor | float = 0.5) -> Observation:
        tokens_L1 = counts_LE.sum(dim=-1, keepdim=True) // 2
        price_LE = 0.5 * counts_LE / tokens_L1.clamp(min=1) - 1 / counts_LE.shape[-1]
        seen_LE = (tokens_L1 > 0).long().expand_as(counts_LE)
        bins_LEC = torch.zeros(*counts_LE.shape, BINS + 2, dtype=torch.int64)
        middle_LE1 = (BINS * (0.5 - 0.4 * price_LE)).long()[..., None]  # a price is a regret below zero
        bins_LEC.scatter_add_(-1, middle_LE1, tokens_L1[..., None].expand_as(middle_LE1).clone())
        readings = {"price": torch.stack((to_fixed_point(price_LE), seen_LE), dim=-1), "price_histogram": bins_LEC}
        readings["phi"] = wandering_phi(counts_LE)
        readings["preference"] = (counts_LE + 3 * torch.arange(counts_LE.shape[-1]))[..., None]
        loss = torch.tensor(5.0) + counts_LE[0, 0] / 50  # wanders with the load
        return Observation(counts_LE, counts_LE.double() * weights_LE, torch.zeros_like(counts_LE), readings, loss)

    return make


@pytest.fixture(scope="session")
def random_observations(observe: Callable[..., Observation]) -> Callable[..., list[Observation]]:
    """Seeded imbalanced observations [3, 6] whose favourites change slowly, as in training."""

    def make(steps: int, *, seed: int = 0, layers: int = 3, experts: int = 6) -> list[Observation]:
        generator = torch.Generator().manual_seed(seed)
        taste_LE = torch.randn(layers, experts, generator=generator)
        observations = []
        for _ in range(steps):
            taste_LE = 0.95 * taste_LE + 0.3 * torch.randn(layers, experts, generator=generator)
            draws_LN = torch.multinomial(taste_LE.softmax(dim=-1), 256, replacement=True, generator=generator)
            counts_LE = torch.stack([draws_N.bincount(minlength=experts) for draws_N in draws_LN])
            observations.append(observe(counts_LE, 0.3 + 0.4 * torch.rand(layers, experts, generator=generator)))
        return observations

    return make
