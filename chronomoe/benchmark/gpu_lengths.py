"""Time per token against the length of a text, RWKV-7 beside attention, to 64k tokens.

A training step (forward, loss, backward) and reading without gradients, one text at a time, random weights, bf16 by
autocast. A recurrence takes the same time for every token; attention's grows with the length. What runs out of memory
is reported as such, and the shorter texts stand.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from chronomoe.benchmark.gpu_training import TINY, Save
from chronomoe.benchmark.job import default_device
from chronomoe.benchmark.memory import peak, reset_peak
from chronomoe.config import compose_config
from chronomoe.model.lm import LanguageModel
from chronomoe.training.autotune import wait

SCHEDULES = {"RWKV-7": "RRRR", "attention": "TTTT"}
LENGTHS = (1024, 4096, 16384, 32768, 65536)


def build(schedule: str, longest: int, tiny: bool, device: torch.device) -> LanguageModel:
    size = TINY if tiny else {"dim": 1024, "hidden_dim": 1272, "num_heads": 16, "num_kv_heads": 16}
    settings = {**size, "num_layers": 4, "schedule": schedule, "max_seq_len": max(longest, 128)}
    config = compose_config(["model=cdrmix_tiny", *(f"model.{name}={value}" for name, value in settings.items())])
    torch.manual_seed(0)
    with device:
        return LanguageModel(config.model, config.router)


def training(model: LanguageModel, length: int) -> Callable[[], object]:
    ids_1S = torch.randint(model.settings.vocab_size, (1, length + 1), device=model.expert_bias_LE.device)

    def run() -> None:
        with torch.autocast(ids_1S.device.type, torch.bfloat16):
            loss = model.train()(ids_1S[:, :-1]).loss(ids_1S[:, 1:])
        loss.backward()
        model.zero_grad()

    return run


def reading(model: LanguageModel, length: int) -> Callable[[], object]:
    ids_1S = torch.randint(model.settings.vocab_size, (1, length), device=model.expert_bias_LE.device)

    def run() -> object:
        with torch.no_grad(), torch.autocast(ids_1S.device.type, torch.bfloat16):
            return model.eval()(ids_1S, state=model.new_state(1, length)).last_logits_BV

    return run


def run(tiny: bool, repeats: int, save: Save) -> dict[str, Any]:
    device = torch.device(default_device())
    lengths = (32, 64) if tiny else LENGTHS
    models = {name: build(schedule, max(lengths), tiny, device) for name, schedule in SCHEDULES.items()}
    result: dict[str, Any] = {"rows": []}
    for length in lengths:
        for what, prepare in (("reading", reading), ("training", training)):
            for name, model in models.items():
                row = {"what": what, "model": name, "tokens": length}
                result["rows"].append(row | measure(prepare(model, length), length, repeats, device))
                save(result)
    return result


def measure(step: Callable[[], object], length: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Microseconds a token: median, after one unmeasured call; or the error."""
    reset_peak(device)
    seconds = []
    try:
        for _ in range(repeats + 1):
            wait(device)
            started = time.perf_counter()
            step()
            wait(device)
            seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"error": str(error).splitlines()[0]}
    return {"microseconds_per_token": 1e6 * statistics.median(seconds[1:]) / length, "peak_memory_bytes": peak(device)}
