"""`python -m chronomoe.benchmark`: a training step of ours beside other implementations, in one interleaved run.

Every system has a process of its own and the same weights (logits are compared before anything is timed), batch,
cross-entropy, clipping, AdamW and number of threads; and a load-balancing loss, whose formula is each one's own. Each
repeat times every system once, ratios are formed within a repeat. Needs `pip install -e ".[hf]"`; litgpt and
st-moe-pytorch join in where they are installed. Writes benchmark.json, benchmark.png and breakdown.png.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from chronomoe.benchmark.figure import draw_benchmark, draw_breakdown
from chronomoe.benchmark.interleave import Measured, interleave, note_failure
from chronomoe.benchmark.job import Job, default_device, save_reference
from chronomoe.benchmark.limits import DTYPES, Limits, Shape, flop_per_token, shapes_of
from chronomoe.benchmark.machine import describe
from chronomoe.benchmark.rows import add_paired_losses, build_rows, ratio, seconds_of
from chronomoe.benchmark.settings import BenchmarkSettings
from chronomoe.benchmark.systems import System, choose, every_system, installed
from chronomoe.benchmark.table import benchmark_table, breakdown_table, remarks
from chronomoe.benchmark.trainee import Trainee
from chronomoe.benchmark.worker import Worker, WorkerFailed
from chronomoe.config import TrainConfig, compose_config
from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import RunFailed

ALWAYS = ["chrono=chronovisor", "router.load_balancing_weight=0.01"]


def main() -> None:
    settings = read_arguments(BenchmarkSettings, sys.argv[1:])
    systems = choose(settings.systems)
    config = compose_config([f"model={settings.model}", *ALWAYS, *settings.overrides])
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    result = measure(systems, config, settings)
    (folder / "benchmark.json").write_text(json.dumps(result, indent=2) + "\n")
    written = [folder / "benchmark.json"]
    if all(row["status"] == "failed" for row in result["rows"]):
        raise RunFailed(f"every system failed; {written[0]} says why")
    limits = {d: limit * 1e12 / result["flop_per_token"] for d, limit in result["limit_tflops"].items()}
    written.append(draw_benchmark(result["rows"], limits, folder / "benchmark.png"))
    print(benchmark_table(result["rows"]), *remarks(result), sep="\n")
    if result["breakdown"]:
        written.append(draw_breakdown(result["breakdown"], folder / "breakdown.png"))
        print(breakdown_table(result["breakdown"]))
    print(*written, sep="\n")


def measure(systems: list[System], config: TrainConfig, settings: BenchmarkSettings) -> dict[str, Any]:
    """Everything that is written to benchmark.json."""
    threads, device = settings.threads or torch.get_num_threads(), default_device()
    tokens = settings.batch_size * settings.seq_len
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        data = Path(scratch) / "reference.pt"
        save_reference(config, settings.batch_size, settings.seq_len, data, device)
        limits = Worker(Limits, threads, device)
        stack.callback(limits.close)
        limits.start()
        before = measure_limits(limits, shapes_of(config, tokens, device))
        job = Job(config=config, device=device, threads=threads, data=str(data))
        workers = {}
        for system in systems:
            workers[system.key] = Worker(Trainee, system, job)
            stack.callback(workers[system.key].close)
        measured = interleave(
            workers, repeats=settings.repeats, steps=settings.steps, warmup_steps=settings.warmup_steps
        )
        reports = ask_all(workers, measured.timings, "report", errors=measured.errors)
        after = measure_limits(limits, shapes_of(config, tokens, device))
        paired = {}
        if settings.paired_steps:
            paired = ask_all(workers, measured.timings, "paired", settings.paired_steps, errors=measured.errors)
        ours = [s.key for s in systems if s.name == "chronomoe" and s.control and s.key in measured.timings]
        profiled, profile_errors = {}, dict(measured.errors)
        waits = ask_all(workers, ours, "synchronisations", errors=profile_errors) if device == "cuda" else {}
        if settings.breakdown_steps:
            profiled = ask_all(workers, ours, "breakdown", settings.breakdown_steps, errors=profile_errors)
    best = {dtype: max(*before[dtype].values(), *after[dtype].values()) for dtype in DTYPES}
    flop = flop_per_token(config, settings.seq_len)
    dense = flop_per_token(replace(config, model=replace(config.model, dense=True)), settings.seq_len)
    known = {s.key: dense if s.name == "dense" else flop for s in systems if s.same_function or s.name == "dense"}
    rows = build_rows(systems, measured, reports, tokens=tokens, flop=known, limits=best)
    add_paired_losses(rows, paired)
    return {
        "machine": describe(threads, device),
        "settings": vars(settings),
        "tokens_per_step": tokens,
        "flop_per_token": flop,
        "limit_tflops": best,
        "limits": {"before": before, "after": after},
        "copy_gb_per_sec": max(before["copy"]["gb_per_sec"], after["copy"]["gb_per_sec"]),
        "rows": rows,
        "control_on_over_off": cost_of_control(measured),
        "breakdown": {key: shares_of(parts) for key, parts in profiled.items()},
        "breakdown_errors": {key: error for key, error in profile_errors.items() if key not in measured.errors},
        "host_synchronisations": waits or None,
        "not_installed": sorted({s.package for s in every_system() if s.package and not installed(s)}),
    }


def measure_limits(limits: Worker, shapes: list[Shape]) -> dict[str, dict[str, float]]:
    return {dtype: limits.ask("tflops", dtype, shapes) for dtype in DTYPES} | {
        "copy": {"gb_per_sec": limits.ask("copied_gb_per_sec")}
    }


def ask_all(
    workers: Mapping[str, Worker], keys: Iterable[str], method: str, *arguments: Any, errors: dict[str, str]
) -> dict[str, Any]:
    """The answer of each that is not in `errors`, one after the other; who fails now goes in there."""
    answers = {}
    for key in tqdm([key for key in keys if key not in errors], desc=method, unit="system"):
        try:
            answers[key] = workers[key].ask(method, *arguments)
        except WorkerFailed as failure:
            note_failure(errors, key, failure)
    return answers


def cost_of_control(measured: Measured) -> dict[str, dict[str, float]]:
    """Seconds of a step with control and metrics over seconds without, within a repeat, by dtype."""
    pairs = {dtype: (f"chronomoe_{dtype}_on", f"chronomoe_{dtype}_off") for dtype in DTYPES}
    return {
        dtype: ratio(*(seconds_of(measured.timings[key]) for key in pair))
        for dtype, pair in pairs.items()
        if all(key in measured.timings for key in pair)
    }


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    whole = sum(seconds.values())
    return {name: value / whole for name, value in seconds.items()}


if __name__ == "__main__":
    guarded(main)
