"""Does imbalance cost speed, and how soon does each law take it away? One model, real routing, disturbed on purpose.

Where tokens go is disturbed through the tokens alone: in a disturbed step most of them are drawn from one narrow band
of the vocabulary, whose few embeddings go to few experts.

| workload | bands |
|---|---|
| even | none |
| hot | one, from a quarter of the run on |
| rotating | another one every eighth of the run, from a quarter on |
| burst | one, for an eighth of the run |

    recovery = steps from the first disturbance until half of what it added to MaxVio (mean over layers) is gone
A run without control has the same weights and tokens. Timing waits for the device every step.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chronomoe.benchmark.gpu_training import Save, shapes
from chronomoe.benchmark.job import default_device
from chronomoe.benchmark.ours import build
from chronomoe.benchmark.systems import System
from chronomoe.chrono.metrics.load import max_vio
from chronomoe.config import TrainConfig
from chronomoe.model.sensor import ASSIGNMENTS
from chronomoe.training.autotune import wait

LAWS = ("off", "chronovisor", "sign", "smebu", "quantile", "bip")
WORKLOADS = ("even", "hot", "rotating", "burst")
BAND, SHARE = 64, 0.9
"""The vocabulary has so many bands; this share of a disturbed step's tokens is of one of them."""


def band_of(workload: str, step: int, steps: int) -> int | None:
    """Which band disturbs this step; None: none does."""
    begun = step - steps // 4
    if workload == "even" or begun < 0:
        return None
    if workload == "burst":
        return 0 if begun < steps // 8 else None
    return begun // max(1, steps // 8) if workload == "rotating" else 0


def draw(workload: str, step: int, steps: int, shape: tuple[int, int], vocab_size: int) -> Tensor:
    """Token ids of a step, int64; the same for every law."""
    generator = torch.Generator().manual_seed(step)
    ids_BS = torch.randint(vocab_size, shape, generator=generator)
    band = band_of(workload, step, steps)
    if band is None:
        return ids_BS
    width = max(1, vocab_size // BAND)
    hot_BS = (band % BAND) * width + torch.randint(width, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < SHARE, hot_BS, ids_BS)


def recovery_steps(vio_N: Sequence[float], begun: int) -> int | None:
    """From the disturbance at `begun`: steps until half of what it added is gone; None if that is not seen, 0 if it
    added nothing."""
    calm = statistics.mean(vio_N[max(0, begun - 5) : begun])
    after = list(vio_N[begun:])
    peak = max(range(len(after)), key=after.__getitem__)
    if after[peak] <= calm:
        return 0
    half = (calm + after[peak]) / 2
    return next((step for step in range(peak, len(after)) if after[step] < half), None)


def train(config: TrainConfig, workload: str, steps: int, shape: tuple[int, int]) -> dict[str, Any]:
    gc.collect()  # the model before this one refers to itself
    device = torch.device(default_device())
    torch.manual_seed(0)
    first_BS = draw("even", 0, steps, (shape[0], shape[1] + 1), config.model.vocab_size).to(device)
    learner = build(System("chronomoe", "ours", "bf16", control=True), config, first_BS, None)
    learner.module.train()
    vio, seconds = [], []
    for step in range(steps):
        ids_BS = draw(workload, step, steps, (shape[0], shape[1] + 1), config.model.vocab_size).to(device)
        wait(device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            losses = learner.losses(ids_BS[:, :-1], ids_BS[:, 1:])
        losses.total.backward()
        learner.clip(1.0)
        loads_LE = learner.module.sensor_LEC[..., ASSIGNMENTS].clone()  # type: ignore[index, operator, union-attr]
        assert learner.control is not None
        learner.control(False)
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        wait(device)
        seconds.append(time.perf_counter() - started)
        vio.append(float(max_vio(loads_LE).mean()))
    settled = slice(steps // 8, None)  # the first steps compile and fill memory
    return {
        "tokens_per_sec": shape[0] * shape[1] / statistics.median(seconds[settled]),
        "max_vio": statistics.mean(vio[settled]),
        "recovery_steps": None if workload == "even" else recovery_steps(vio, steps // 4),
        "seconds_N": seconds,
        "max_vio_N": vio,
    }


def run(tiny: bool, save: Save) -> dict[str, Any]:
    """A row a workload and law. Rows come workload by workload, each beginning with no control."""
    steps, shape = (16, (1, 32)) if tiny else (120, (16, 1024))
    laws = LAWS[:2] if tiny else LAWS
    result: dict[str, Any] = {"steps": steps, "rows": []}
    for workload in WORKLOADS:
        for law in laws:
            config = shapes()["S1"].compose(tiny, f"chrono={law}", "router.load_balancing_weight=0")
            result["rows"].append({"workload": workload, "law": law} | train(config, workload, steps, shape))
            save(result)
    return result
