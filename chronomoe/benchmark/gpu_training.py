"""Training steps of the shapes that users train on one GPU, beside transformers: tokens per second and MFU.

    MFU = FLOP per token (sizing.training_flops) * tokens/s / (nominal dense bf16 FLOP/s of the GPU)
FLOP per token = 3 (2 N + 2 D V + 2 L S D): N active parameters without embedding and head, causal attention once; a
hybrid's WKV by its chunks. Routing is real: nothing is balanced by force.

| shape | what it is |
|---|---|
| S1, S2 | small and medium, where overheads show |
| S3 | 24 layers of width 2048, context 4096; experts as wide as the training state of one 141 GB GPU allows |
| fine, switch | 64 experts: top-8 of narrow ones, top-1 |
| cdrmix | RWKV-7 and attention 3:1 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from chronomoe.benchmark.__main__ import ALWAYS, measure
from chronomoe.benchmark.job import default_device
from chronomoe.benchmark.settings import BenchmarkSettings
from chronomoe.benchmark.systems import System, installed
from chronomoe.config import TrainConfig, compose_config
from chronomoe.model.sizing import size_of, training_flops

Save = Callable[[dict[str, Any]], None]
"""Called with what a part knows so far, so that a time limit loses the rest only."""
NOMINAL_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bf16 of the vendor's data sheets (SXM), by a word of the device's name."""
BYTES_PER_PARAMETER = 18
"""fp32 weight, gradient and two moments, and the bf16 copy that products read."""
FILLED = 0.7
"""Share of the memory that weights may take of all systems together; beyond it they are timed one after the other."""


@dataclass(kw_only=True)
class Shape:
    overrides: dict[str, Any]
    batch_size: int
    seq_len: int
    model: str = "mixtral_4x16"
    router: tuple[str, ...] = ()
    peers: bool = True
    same_function: bool = True

    def compose(self, tiny: bool, *further: str) -> TrainConfig:
        settings = {"vocab_size": 32000, "max_seq_len": self.seq_len} | self.overrides | (TINY if tiny else {})
        words = [f"model={self.model}", *ALWAYS, *self.router]
        return compose_config([*words, *(f"model.{name}={value}" for name, value in settings.items()), *further])


TINY = {"num_layers": 2, "dim": 64, "hidden_dim": 32, "num_heads": 1, "num_kv_heads": 1, "vocab_size": 64}


def heads(dim: int, kv: int) -> dict[str, int]:
    return {"dim": dim, "num_heads": dim // 64, "num_kv_heads": kv}


def shapes() -> dict[str, Shape]:
    fine = {"num_layers": 8, "num_experts": 64, "hidden_dim": 256}
    return {
        "S1": Shape(
            overrides={"num_layers": 8, "num_experts": 8, "hidden_dim": 1792} | heads(512, 4),
            batch_size=16,
            seq_len=1024,
        ),
        "S2": Shape(
            overrides={"num_layers": 12, "num_experts": 16, "hidden_dim": 1792} | heads(1024, 4),
            batch_size=8,
            seq_len=1024,
        ),
        "S3": Shape(
            overrides={"num_layers": 24, "num_experts": 8, "hidden_dim": 3584} | heads(2048, 8),
            batch_size=2,
            seq_len=4096,
        ),
        "fine": Shape(overrides=fine | heads(512, 4), batch_size=16, seq_len=1024, router=("router.top_k=8",)),
        "switch": Shape(
            overrides=fine | {"hidden_dim": 1024} | heads(512, 4),
            batch_size=16,
            seq_len=1024,
            router=("router=switch",),
            same_function=False,  # transformers' Mixtral weighs its only expert by 1
        ),
        "cdrmix": Shape(
            overrides={"num_layers": 8, "num_experts": 8, "hidden_dim": 1272} | heads(512, 8),
            batch_size=16,
            seq_len=1024,
            model="cdrmix_tiny",
            peers=False,
        ),
    }


def systems_of(shape: Shape, tiny: bool) -> list[System]:
    """In miniature two suffice to see that everything runs."""
    found = [System("chronomoe", "ours", "bf16", control=on) for on in (True, False)]
    names = ("transformers grouped_mm", "transformers grouped_mm compiled") if shape.peers else ()
    for name in names:
        peer = System(name, "mixtral_peer", "bf16", package="transformers", peer=True)
        found.append(peer._replace(same_function=shape.same_function))
    found.append(System("dense", "ours", "bf16", same_function=False))
    if tiny:
        found = [found[0], *(system for system in found if system.peer)][:2]
    on_gpu = default_device() == "cuda"
    return [s for s in found if installed(s) and (on_gpu or "compiled" not in s.name)]


def run(name: str, tiny: bool, repeats: int, save: Save) -> dict[str, Any]:
    shape, device = shapes()[name], default_device()
    config = shape.compose(tiny)
    settings = BenchmarkSettings(
        batch_size=1 if tiny else shape.batch_size,
        seq_len=32 if tiny else shape.seq_len,
        repeats=repeats,
        steps=1 if tiny else 4,
        warmup_steps=1 if tiny else 3,
        breakdown_steps=1 if tiny else 2,
        threads=1 if device == "cpu" else None,
    )
    systems = systems_of(shape, tiny)
    if device == "cpu" or fits_together(config, len(systems)):
        return finish(measure(systems, config, settings), config, settings.seq_len, "timed in turn")
    result: dict[str, Any] = {}
    for system in systems:
        found = measure([system], config, settings)
        if result:
            result["rows"] += finish(found, config, settings.seq_len, "")["rows"]
            result["breakdown"] |= found["breakdown"]
        else:
            result = finish(found, config, settings.seq_len, "one after the other: they do not fit together")
        save(result)
    return result


def fits_together(config: TrainConfig, systems: int) -> bool:
    needed = size_of(config.model, config.router).stored * BYTES_PER_PARAMETER * systems
    return needed < FILLED * torch.cuda.get_device_properties(0).total_memory


def finish(result: dict[str, Any], config: TrainConfig, seq_len: int, how: str) -> dict[str, Any]:
    flop, peak = training_flops(config.model, config.router, seq_len), nominal_tflops(result["machine"]["device"])
    for row in result["rows"]:
        if row["status"] == "done" and row["system"] != "dense":
            tflops = flop * row["tokens_per_sec"]["median"] / 1e12
            row |= {"tflops": tflops, "mfu": None if peak is None else tflops / peak}
    size = size_of(config.model, config.router)
    return result | {
        "how": how,
        "mfu_formula": "3 (2 N + 2 D V + 2 L S D) tokens/s / nominal bf16 FLOP/s; N active, no embedding, no head",
        "nominal_tflops": peak,
        "training_flop_per_token": flop,
        "parameters": size.stored,
        "active_parameters": size.active,
    }


def nominal_tflops(device: str) -> float | None:
    return next((peak for word, peak in NOMINAL_TFLOPS.items() if word in device), None)
