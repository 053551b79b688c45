"""`python -m chronomoe.benchmark.scaling`: the step time of ours against the number of experts, and against tokens.

More experts of the same width and as many per token leave the active parameters as they are (but for router rows):
what grows is dispatch, smaller products, and the optimizer's work. Each variant has a process of its own; all of a part
are timed in turn and compared with its first one within a repeat. Writes scaling.json and scaling.png.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from chronomoe.benchmark.figure import draw_scaling
from chronomoe.benchmark.interleave import interleave
from chronomoe.benchmark.job import Job, default_device, save_batches
from chronomoe.benchmark.machine import describe
from chronomoe.benchmark.rows import ratio, seconds_of, spread
from chronomoe.benchmark.settings import ScalingSettings
from chronomoe.benchmark.systems import System
from chronomoe.benchmark.table import markdown, show_spread
from chronomoe.benchmark.trainee import Timing, Trainee
from chronomoe.benchmark.worker import Worker
from chronomoe.config import TrainConfig, compose_config
from chronomoe.entry import guarded, read_arguments
from chronomoe.model.sizing import size_of
from chronomoe.settings import InputError


class Variant(NamedTuple):
    config: TrainConfig
    batch_size: int
    seq_len: int

    @property
    def tokens(self) -> int:
        return self.batch_size * self.seq_len


def main() -> None:
    settings = read_arguments(ScalingSettings, sys.argv[1:])
    parts = {"experts": expert_variants(settings), "tokens": token_variants(settings)}
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    threads, device = settings.threads or torch.get_num_threads(), default_device()
    rows = {name: time_variants(variants, settings, threads, device) for name, variants in parts.items() if variants}
    result = {"machine": describe(threads, device), "settings": vars(settings), **rows}
    (folder / "scaling.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, found in rows.items():
        print(table(name, found))
    print(folder / "scaling.json", draw_scaling(rows, folder / "scaling.png"), sep="\n")


def compose(settings: ScalingSettings, *overrides: str) -> TrainConfig:
    always = ["chrono=chronovisor", "router.load_balancing_weight=0.01"]
    return compose_config([f"model={settings.model}", *always, *settings.overrides, *overrides])


def expert_variants(settings: ScalingSettings) -> dict[int, Variant]:
    return {
        count: Variant(compose(settings, f"model.num_experts={count}"), settings.batch_size, settings.seq_len)
        for count in settings.experts
    }


def token_variants(settings: ScalingSettings) -> dict[int, Variant]:
    found = {}
    for tokens in settings.tokens:
        batch_size, left_over = divmod(tokens, settings.seq_len)
        if left_over or batch_size < 1:
            nearest = max(1, round(tokens / settings.seq_len)) * settings.seq_len
            raise InputError(
                f"tokens={tokens} is no whole number of sequences of seq_len={settings.seq_len}: the nearest is "
                f"{nearest}"
            )
        found[tokens] = Variant(compose(settings), batch_size, settings.seq_len)
    return found


def time_variants(
    variants: Mapping[int, Variant], settings: ScalingSettings, threads: int, device: str
) -> list[dict[str, Any]]:
    system = System("chronomoe", "ours", settings.dtype, control=True)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        workers = {}
        for value, variant in variants.items():
            data = Path(scratch) / f"{value}.pt"
            save_batches(variant.config, variant.batch_size, variant.seq_len, data)
            job = Job(config=variant.config, device=device, threads=threads, data=str(data))
            workers[str(value)] = Worker(Trainee, system, job)
            stack.callback(workers[str(value)].close)
        measured = interleave(
            workers, repeats=settings.repeats, steps=settings.steps, warmup_steps=settings.warmup_steps
        )
    return build_rows(variants, measured.timings, measured.errors)


def build_rows(
    variants: Mapping[int, Variant], timings: Mapping[str, Sequence[Timing]], errors: Mapping[str, str]
) -> list[dict[str, Any]]:
    """`ratio_to_first`: seconds per token over those of the first variant, within a repeat; with equal tokens that is
    the ratio of step times."""
    reference = timings.get(str(next(iter(variants))))
    rows = []
    for value, variant in variants.items():
        size = size_of(variant.config.model, variant.config.router)
        row: dict[str, Any] = {"value": value, "parameters": size.stored, "active_parameters": size.active}
        if str(value) in errors:
            rows.append(row | {"status": "failed", "error": errors[str(value)]})
            continue
        seconds, tokens = seconds_of(timings[str(value)]), variant.tokens
        row |= {"status": "done", "tokens_per_step": tokens, "seconds_per_step": spread(seconds)}
        row["tokens_per_sec"] = spread([tokens / each for each in seconds])
        row["ratio_to_first"] = None
        if reference is not None:
            first = next(iter(variants.values())).tokens
            per_token = ratio(seconds, seconds_of(reference))
            row["ratio_to_first"] = {name: each * first / tokens for name, each in per_token.items()}
        rows.append(row)
    return rows


def table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{row['value']:,}",
            f"{row['parameters'] / 1e6:.1f} M ({row['active_parameters'] / 1e6:.1f} M)",
            *(
                [row["status"], row["error"], "-"]
                if row["status"] == "failed"
                else [
                    show_spread(row["seconds_per_step"], ".3f"),
                    show_spread(row["tokens_per_sec"], ",.0f"),
                    show_spread(row["ratio_to_first"], ".2f"),
                ]
            ),
        ]
        for row in rows
    ]
    first = f"{rows[0]['value']:,}"
    head = ["tokens per step" if name == "tokens" else name, "parameters (active)", "seconds per step, median (range)"]
    return markdown([*head, "tokens/s", f"seconds per token, against {first}"], lines)


if __name__ == "__main__":
    guarded(main)
