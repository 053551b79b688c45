"""A job small enough to run in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chronomoe.benchmark.job import Job, save_reference
from chronomoe.config import compose_config

TINY = [
    "model=mixtral_2x8",
    "model.num_experts=4",
    "model.dim=32",
    "model.hidden_dim=48",
    "model.vocab_size=64",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "chrono=chronovisor",
    "router.load_balancing_weight=0.01",
]


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Job]:
    """tiny_job("optim.lr=0.1"): two sequences of 16 tokens, weights and reference logits."""

    def make(*overrides: str) -> Job:
        config = compose_config([*TINY, *overrides])
        path = tmp_path_factory.mktemp("job") / "reference.pt"
        save_reference(config, 2, 16, path)
        return Job(config=config, device="cpu", threads=1, data=str(path))

    return make
