"""What every room's tests share: tiny models, and property tests that draw the same examples in every run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings

pytest_plugins = ["training_runs", "sweep_runs", "saved_runs"]


def pytest_configure() -> None:
    settings.register_profile("deterministic", derandomize=True, database=None, deadline=None, max_examples=50)
    settings.load_profile("deterministic")
    torch.set_num_threads(1)  # tensors here are too small to share


@pytest.fixture(scope="session")
def tiny_settings() -> Callable[..., ModelSettings]:
    """Settings of a model that runs in milliseconds, with overrides."""

    def make(**overrides: object) -> ModelSettings:
        sizes: dict = {
            "num_layers": 2,
            "num_experts": 4,
            "dim": 16,
            "hidden_dim": 24,
            "num_heads": 4,
            "num_kv_heads": 2,
            "vocab_size": 32,
            "max_seq_len": 32,
        }
        return ModelSettings(**(sizes | overrides))

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_settings: Callable[..., ModelSettings]) -> Callable[..., LanguageModel]:
    """A seeded model in eval mode. Weights of 0.3 make attention and routing differ visibly between tokens."""

    def make(*, seed: int = 0, top_k: int = 2, actuation: str = "selection", **overrides: object) -> LanguageModel:
        torch.manual_seed(seed)
        router = RouterSettings(kind="mixtral", top_k=top_k)
        return LanguageModel(tiny_settings(**({"init_std": 0.3} | overrides)), router, actuation).eval()

    return make


@pytest.fixture(scope="session")
def draw_ids() -> Callable[..., torch.Tensor]:
    """Seeded random token ids, int64 [B, S], below the tiny vocabulary of 32."""

    def make(batch: int, length: int, seed: int = 1) -> torch.Tensor:
        return torch.randint(32, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def recorded_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """recorded_run(layers=3, experts=6): a folder with the record of ten steps of a wandering centred field."""

    def make(layers: int = 3, experts: int = 6) -> Path:
        folder, rng = tmp_path_factory.mktemp("recorded"), np.random.default_rng(0)
        bias_NLE, heat_NLE = rng.standard_normal((2, 10, layers, experts)).cumsum(axis=1).astype(np.float32)
        bias_NLE -= bias_NLE.mean(axis=-1, keepdims=True)
        np.savez(folder / "routing.npz", step=np.arange(1, 11), bias=bias_NLE, log_temperature=0.1 * heat_NLE)
        return folder

    return make
