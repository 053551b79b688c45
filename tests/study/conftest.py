"""Run directories made up on the spot, as train.py leaves them: routing starts uneven and a lens evens it out."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sweeps import ETA, PRESSURE, write_sweep
from opened_report import launched

TOKENS_PER_STEP = 4096
FAILURE = "loss is <nan> & not finite"

CONFIG = """\
model:
  num_layers: {num_layers}
  num_experts: {num_experts}
  dense: {dense}
  dim: 128
router:
  kind: mixtral
  top_k: 2
chrono:
  law: '{law}'
  coherence: entropy
data:
  source: stdlib
seed: 7
"""


def write_run(
    directory: Path,
    *,
    steps: int = 300,
    num_layers: int = 2,
    num_experts: int = 8,
    dense: bool = False,
    law: str = "chronovisor",
    error: str | None = None,
    eval_every_steps: int = 50,
) -> Path:
    """Write a run of `steps` logged steps; one expert is a dense model, `error` ends the run as failed."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(
        CONFIG.format(num_layers=num_layers, num_experts=num_experts, dense=dense, law=law)
    )
    write_summary(directory, steps, error)
    rng = np.random.default_rng(0)
    step = np.arange(1, steps + 1)
    loss = 4.1 + 4.2 * np.exp(-step / 60) + 0.05 * rng.standard_normal(steps)
    columns = {"step": step, "train/loss": loss, "train/lr": 3e-4 * np.minimum(1, step / 30)}
    columns["train/tokens"] = step * TOKENS_PER_STEP
    if steps and not dense:
        columns |= write_routing(directory, step, num_layers, num_experts, law, rng)
    rows: list[dict[str, Any]] = []
    for index in range(steps):
        rows.append({name: values[index].item() for name, values in columns.items()})
        if step[index] % eval_every_steps == 0:
            rows.append(
                {"step": step[index].item(), "val/loss": loss[index] + 0.1, "val/perplexity": np.exp(loss[index] + 0.1)}
            )
    if rows:
        with (directory / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*columns, "val/loss", "val/perplexity"])
            writer.writeheader()
            writer.writerows(rows)
    return directory


def write_summary(directory: Path, steps: int, error: str | None) -> None:
    summary: dict[str, Any] = {
        "config_hash": "3f9c1e0a7b42",
        "num_params": 4_312_064,
        "num_active_params": 1_948_672,
        "versions": {"python": "3.12.4", "torch": "2.13.0"},
        "git_revision": "0f3a9d1",
        "status": "failed" if error else "done",
        "error": error,
        "wall_seconds": 231.7,
    }
    if not error:
        summary |= {
            "steps": steps,
            "tokens": steps * TOKENS_PER_STEP,
            "val_loss": 4.270,
            "val_perplexity": 71.52,
            "unigram_perplexity": 731.2,
            "max_vio_early": 1.204,
            "max_vio_late": 0.212,
            "val_max_vio": 0.198,
            "load_entropy": 0.994,
            "val_token_entropy": 0.661,
            "expert_information": 0.655,
            "dead_expert_frac": 0.0,
            "tokens_per_sec": 5321.4,
        }
    (directory / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def write_routing(
    directory: Path, step: np.ndarray, num_layers: int, num_experts: int, law: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Write `routing.npz`; returns the columns of `metrics.csv` that follow from it."""
    controlled = law != "off"
    preference = rng.standard_normal((num_layers, num_experts))
    freedom = np.exp(-step / 80)[:, None, None] if controlled else np.ones((len(step), 1, 1))
    logits = preference * freedom + 0.05 * rng.standard_normal((len(step), num_layers, num_experts))
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # [N, L, E]
    tokens = rng.multinomial(2 * TOKENS_PER_STEP, share)
    lens = controlled * -preference * (1 - freedom) * np.ones_like(share)
    pressure = controlled * 0.2 * np.clip(1 - num_experts * share, -1, 1)
    coherence = controlled * (1 + (share * np.log(share)).sum(-1) / np.log(num_experts))
    np.savez_compressed(
        directory / "routing.npz",
        step=step,
        stride=1,
        tokens_per_expert=tokens,
        bias=(lens + pressure).astype(np.float32),
        log_temperature=np.zeros_like(lens, np.float32),
        pressure=pressure.astype(np.float32),
        lens=lens.astype(np.float32),
        coherence=coherence.astype(np.float32),
    )
    max_vio = tokens.max(-1) / tokens.mean(-1) - 1  # [N, L]
    columns = {"router/max_vio": max_vio.mean(1), "router/max_vio_worst": max_vio.max(1)}
    columns |= {f"router/layer_{layer:02d}/max_vio": max_vio[:, layer] for layer in range(num_layers)}
    return columns | ({"chrono/coherence": coherence.mean(1)} if controlled else {})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run directory; keywords as in `write_run`."""
    return lambda **options: write_run(tmp_path / "run", **options)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One complete run for the tests that only read it."""
    return write_run(tmp_path_factory.mktemp("study") / "finished")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two settings in two strata, evaluated, with a point that failed, for the tests that only read it."""
    return write_sweep(
        tmp_path_factory.mktemp("study") / "swept",
        axes={PRESSURE: ("0.5", "0.05"), ETA: ("0", "0.02")},
        models=("mixtral_2x8", "switch_2x8"),
        steps=100,
        evaluated=True,
        failed={f"model=switch_2x8 {PRESSURE}=0.5 {ETA}=0 seed=3": FAILURE},
    )
