"""`python -m chronomoe.benchmark`: training tokens per second against transformers' Mixtral, in one interleaved run.

Same initial weights (logits are compared first), same batch, same loss, clipping and fused AdamW, same threads. Every
repeat times every system once, one after the other, so a machine that slows down slows them all; ratios are formed
repeat by repeat. Needs `pip install -e ".[hf]"`. Writes `benchmark.json`.

    FLOP per token = 3 (2 N + 2 D V + 2 L S D)    N active parameters without embedding and head; causal attention once
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.config import TrainConfig, compose_config
from chronomoe.entry import guarded, read_arguments
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sizing import measure
from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral
from chronomoe.settings import InputError, setting
from chronomoe.training.optimizer import build_optimizer

LOGIT_TOLERANCE = 1e-4


@dataclass(kw_only=True)
class BenchmarkSettings:
    model: str = setting("mixtral_2x8")
    """Which `configs/model` to measure."""
    batch_size: int = setting(8, low=1)
    """Sequences of a step."""
    seq_len: int = setting(256, low=2)
    """Tokens of a sequence."""
    repeats: int = setting(8, low=1)
    """Interleaved repeats; medians and ranges are over these."""
    steps: int = setting(5, low=1)
    """Optimizer steps a system is timed for in one repeat."""
    output: str = setting("outputs/benchmark.json")
    """Where the numbers go."""


class System(NamedTuple):
    name: str
    dtype: str
    control: bool | None
    """Whether controller and metrics run; None for a system that has none."""
    step: Callable[[], None]
    control_seconds: list[float]
    """Seconds each step spent on controller and metrics; empty where there are none."""


def training_step(
    logits_of: Callable[[Tensor], Tensor], module: nn.Module, config: TrainConfig, batch_BS: Tensor, bf16: bool
) -> Callable[[], None]:
    """Forward, backward, clip and AdamW on one batch [B, S + 1], the same for every system."""
    optimizer = build_optimizer(module, config.optim, fused=True)
    module.train()

    def step() -> None:
        with torch.autocast(batch_BS.device.type, torch.bfloat16, enabled=bf16):
            logits_BSV = logits_of(batch_BS[:, :-1])
        loss = cross_entropy(logits_BSV.flatten(0, 1).float(), batch_BS[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), config.trainer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(config: TrainConfig, weights: dict[str, Tensor], batch_BS: Tensor, *, bf16: bool, control: bool) -> System:
    model = LanguageModel(config.model, config.router, config.chrono.actuation).to(batch_BS.device)
    model.load_state_dict(weights)
    train = training_step(lambda ids: model(ids).logits_BSV, model, config, batch_BS, bf16)
    dtype = "bf16" if bf16 else "fp32"
    if not control:
        return System("chronomoe", dtype, False, train, [])
    control_step, control_seconds = controlled(model, config), []

    def step() -> None:
        train()
        started = time.perf_counter()
        control_step()
        control_seconds.append(time.perf_counter() - started)

    return System("chronomoe", dtype, True, step, control_seconds)


def controlled(model: LanguageModel, config: TrainConfig) -> Callable[[], None]:
    """What the callback does in a step whose metrics are logged, the transfer to the host included."""
    controller = Chronovisor(config.chrono, *model.expert_bias_LE.shape)
    callback = ChronovisorCallback(controller, model, max_steps=1, record_path=Path("never.npz"))
    callback.on_train_start(None, None)  # type: ignore[arg-type]

    def step() -> None:
        callback.on_before_optimizer_step(None, None, None)  # type: ignore[arg-type]
        torch.stack([value.double() for value in callback.metrics().values()]).tolist()

    return step


def peer(config: TrainConfig, weights: dict[str, Tensor], batch_BS: Tensor, *, bf16: bool, backend: str) -> System:
    """transformers' Mixtral with one of its expert backends. Raises RuntimeError if it computes something else."""
    from transformers import MixtralForCausalLM

    hf_config = mixtral_config(config.model, config.router)
    hf_config._experts_implementation = backend
    model = MixtralForCausalLM(hf_config)
    model.to(batch_BS.device)  # type: ignore[arg-type]
    model.load_state_dict(to_mixtral(weights, config.model))
    reference = LanguageModel(config.model, config.router).to(batch_BS.device)
    reference.load_state_dict(weights)
    with torch.no_grad():
        difference = (model(batch_BS[:, :-1]).logits - reference(batch_BS[:, :-1]).logits_BSV).abs().max().item()
    if difference > LOGIT_TOLERANCE:
        raise RuntimeError(f"transformers ({backend}) differs by {difference:.1e} in its logits: nothing to compare")
    step = training_step(lambda ids: model(ids, use_cache=False).logits, model, config, batch_BS, bf16)
    return System(f"transformers {backend}", "bf16" if bf16 else "fp32", None, step, [])


def interleave(systems: Sequence[System], settings: BenchmarkSettings) -> list[list[float]]:
    """Seconds per step: one list of `repeats` values per system. Each repeat begins with another system, because the
    place in the order matters (what ran before leaves its memory behind)."""
    seconds: list[list[float]] = [[] for _ in systems]
    for system in systems:
        system.step()
    for repeat in tqdm(range(settings.repeats), desc="repeats"):
        for place in range(len(systems)):
            index = (place + repeat) % len(systems)
            system = systems[index]
            started = time.perf_counter()
            for _ in range(settings.steps):
                system.step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[index].append((time.perf_counter() - started) / settings.steps)
    return seconds


def gemm_limit(dtype: torch.dtype, device: torch.device) -> float:
    """TFLOP/s of a large square product, the best of five: what the machine can do at all."""
    size = 2048
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / 1e12


def flop_per_token(model: LanguageModel, config: TrainConfig, seq_len: int) -> int:
    settings = config.model
    embeddings = settings.vocab_size * settings.dim * (1 if settings.tie_embeddings else 2)
    inner = measure(model, config.router.experts_per_token).active - embeddings
    head, attention = settings.dim * settings.vocab_size, settings.num_layers * seq_len * settings.dim
    return 3 * (2 * inner + 2 * head + 2 * attention)


def rows_of(
    systems: Sequence[System], seconds: Sequence[Sequence[float]], tokens: int, flop: int, limits: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per system; `ratio_to_best_peer` is the median over repeats of the ratio within a repeat."""
    rows = []
    for system, mine in zip(systems, seconds, strict=True):
        rivals = [
            s
            for other, s in zip(systems, seconds, strict=True)
            if other.control is None and other.dtype == system.dtype
        ]
        best_peer = min(rivals, key=statistics.median)
        rates = [tokens / value for value in mine]
        rows.append(
            {
                "system": system.name,
                "dtype": system.dtype,
                "control": system.control,
                "tokens_per_sec": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
                "ratio_to_best_peer": statistics.median(b / m for b, m in zip(best_peer, mine, strict=True)),
                "share_of_limit": flop * statistics.median(rates) / 1e12 / limits[system.dtype],
            }
        )
    return rows


def main() -> None:
    settings = read_arguments(BenchmarkSettings, sys.argv[1:])
    try:
        import transformers
    except ModuleNotFoundError:
        raise InputError('the benchmark compares with transformers: pip install -e ".[hf]"') from None
    config = compose_config([f"model={settings.model}", "chrono=chronovisor"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = LanguageModel(config.model, config.router).to(device)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch_BS = torch.randint(config.model.vocab_size, (settings.batch_size, settings.seq_len + 1), device=device)
    systems = []
    for bf16 in (False, True):
        systems += [ours(config, weights, batch_BS, bf16=bf16, control=control) for control in (True, False)]
        systems += [peer(config, weights, batch_BS, bf16=bf16, backend=name) for name in ("grouped_mm", "eager")]
    limits = {"fp32": gemm_limit(torch.float32, device), "bf16": gemm_limit(torch.bfloat16, device)}
    seconds = interleave(systems, settings)
    tokens = settings.batch_size * settings.seq_len
    rows = rows_of(systems, seconds, tokens, flop_per_token(model, config, settings.seq_len), limits)
    control_cost = {
        system.dtype: statistics.median(system.control_seconds) / statistics.median(mine)
        for system, mine in zip(systems, seconds, strict=True)
        if system.control
    }
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    result = {"machine": machine, "limit_tflops": limits, "settings": vars(settings), "control_cost": control_cost}
    path = Path(settings.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"rows": rows}, indent=2) + "\n")
    print_table(rows, control_cost, limits, path)


def print_table(
    rows: Sequence[dict[str, Any]], control_cost: dict[str, float], limits: dict[str, float], path: Path
) -> None:
    print("| system | dtype | control | tokens/s, median (range) | against best peer | of GEMM limit |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        rate, control = row["tokens_per_sec"], {None: "-", True: "on", False: "off"}[row["control"]]
        print(
            f"| {row['system']} | {row['dtype']} | {control} "
            f"| {rate['median']:,.0f} ({rate['min']:,.0f}–{rate['max']:,.0f}) "
            f"| {row['ratio_to_best_peer']:.2f}x | {row['share_of_limit']:.0%} |"
        )
    for dtype, cost in control_cost.items():
        print(f"control and metrics, {dtype}: {cost:.1%} of a step; GEMM limit {limits[dtype]:.2f} TFLOP/s")
    print(path)


if __name__ == "__main__":
    guarded(main)
