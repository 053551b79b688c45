"""RWKV-7's recurrence in training: chunks against the loop over tokens, and growth with length.

    python scripts/rwkv_speed.py [--repeats 7] [--chunks 32 64] [--output outputs/rwkv_speed.json]

Forward and backward pass of wkv_chunked and wkv_recurrent in fp32, head width 64, on processors. Whatever is compared
is timed in turn, once per repeat, in one process; ratios are formed repeat by repeat. Both clocks are reported: the
wall's, and the process's own, which other programs on the machine disturb less. A decoding step is one token of a
TimeMix layer after a prompt. Load, threads and processor are written with the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from chronomoe.model.chunked_wkv import CHUNK, wkv_chunked
from chronomoe.model.rwkv import TimeMix
from chronomoe.model.wkv import LOWEST_LOG_DECAY, wkv_recurrent
from chronomoe.training.allocator import keep_freed_memory
from chronomoe.training.autotune import processor_name

WIDTH = 64
SHAPES = ((1, 4), (1, 12), (4, 8))
"""(batch, heads)."""
Run = Callable[[], object]


def training_step(batch: int, length: int, heads: int, chunk: int | None) -> Run:
    """A forward and a backward pass; None: token by token."""
    shape = (batch, length, heads, WIDTH)
    key, rate = normalize(torch.randn(shape), dim=-1), torch.rand(shape)
    log_w = LOWEST_LOG_DECAY * torch.rand(shape)
    drawn = torch.randn(shape), log_w, torch.randn(shape), torch.randn(shape), -key, rate * key
    given = [x.requires_grad_() for x in (*drawn, torch.zeros(batch, heads, WIDTH, WIDTH))]
    directions = torch.randn(shape), torch.randn(batch, heads, WIDTH, WIDTH)

    def run() -> None:
        outputs = wkv_recurrent(*given) if chunk is None else wkv_chunked(*given, chunk=chunk)
        torch.autograd.grad(outputs, given, directions)

    return run


def decoding_step(heads: int, position: int) -> Run:
    layer = TimeMix(heads * WIDTH, 0, 12, first=True)
    with torch.no_grad():
        state = layer(torch.randn(1, position, heads * WIDTH)).state
    x = torch.randn(1, 1, heads * WIDTH)

    def run() -> None:
        with torch.no_grad():
            for _ in range(100):
                layer(x, state)

    return run


def seconds_in_turn(runs: dict[str, Run], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, process) of each, repeat by repeat, after one unmeasured."""
    for run in runs.values():
        run()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, process = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - wall, time.process_time() - process))
    return found


def ratio(above: list[tuple[float, float]], below: list[tuple[float, float]]) -> dict[str, float]:
    """Medians over repeats, by both clocks."""
    return {
        clock: statistics.median(a[n] / b[n] for a, b in zip(above, below, strict=True))
        for n, clock in enumerate(("wall", "process"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="RWKV-7's recurrence: chunks against the loop, growth with length.")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--chunks", type=int, nargs="+", default=[CHUNK, 64], help="tokens of a chunk")
    parser.add_argument("--output", default="outputs/rwkv_speed.json", help="where the numbers go")
    chosen = parser.parse_args()
    keep_freed_memory()
    rows: list[dict[str, Any]] = []

    def report(what: str, batch: int, heads: int, **numbers: Any) -> None:
        rows.append({"what": what, "batch": batch, "heads": heads, **numbers})
        print(f"| {what} | {batch} x {heads} | {numbers['wall']:.2f} | {numbers['process']:.2f} |", flush=True)

    print("| ratio of times | batch x heads | wall | process |\n|---|---|---|---|")
    load = os.getloadavg()
    for batch, heads in SHAPES:
        runs = {"loop": training_step(batch, 512, heads, None)}
        runs |= {f"C = {chunk}": training_step(batch, 512, heads, chunk) for chunk in chosen.chunks}
        found = seconds_in_turn(runs, chosen.repeats)
        for chunk in chosen.chunks:
            name = f"C = {chunk}"
            report(f"loop / chunks, T = 512, {name}", batch, heads, **ratio(found["loop"], found[name]))
        short, long = (training_step(batch, length, heads, CHUNK) for length in (1024, 4096))
        found = seconds_in_turn({"short": short, "long": long}, chosen.repeats)
        report(f"T = 4096 / T = 1024, C = {CHUNK}", batch, heads, **ratio(found["long"], found["short"]))
    found = seconds_in_turn({str(position): decoding_step(12, position) for position in (64, 4096)}, chosen.repeats)
    report("decoding step at 4096 / at 64", 1, 12, **ratio(found["4096"], found["64"]))
    machine = {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
    }
    path = Path(chosen.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "settings": vars(chosen), "rows": rows}, indent=2) + "\n")
    print(f"{machine}; {path}")


if __name__ == "__main__":
    main()
