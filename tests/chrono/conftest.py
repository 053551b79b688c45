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
from chronomoe.config import parse, register

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def law_settings() -> Callable[..., ChronoSettings]:
    """`law_settings(law, temperature=…, **overrides)`: the law's file, with short clocks (2 and 4 steps) by default."""
    register()
    loaded: dict[str, ChronoSettings] = {}

    def make(law: str, *, temperature: str = "off", **overrides: object) -> ChronoSettings:
        if law not in loaded:
            with initialize_config_dir(str(CONFIGS), version_base=None):
                loaded[law] = parse(compose("train", [f"chrono={law}"])).chrono
        settings = loaded[law]
        if isinstance(settings, ControlSettings):
            heat = dataclasses.replace(settings.temperature, kind=temperature)
            clocks = ClockSettings(micro_period=2, macro_period=4)
            overrides = {"clocks": clocks, "temperature": heat, "schedule_steps": 40} | overrides
        return dataclasses.replace(settings, **overrides)

    return make


@pytest.fixture(scope="session")
def observe() -> Callable[..., Observation]:
    """The observation that a table of assignments stands for; every assignment weighs 1/2 unless weights are given."""

    def make(counts_LE: Tensor, weights_LE: Tensor | float = 0.5) -> Observation:
        return Observation(counts_LE, counts_LE.double() * weights_LE)

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
