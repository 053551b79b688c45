"""How fast RWKV-7's recurrence and the models around it are, beside Mixtral's attention.

    python scripts/hybrid_speed.py [--repeats 7] [--output outputs/hybrid_speed.json] [--figure docs/images/hybrid.png]

The recurrence, fp32, head width 64: forward and backward pass of wkv_chunked against wkv_recurrent, and against itself
at four times the length. Models of equal active parameters, random weights, the same tokens: a training step (forward,
loss, backward, one sequence) at several lengths, a decoding step at several positions, and the bytes of state there.
Whatever is compared is timed in turn, once a repeat, in one process; ratios are formed repeat by repeat. Both clocks
are reported: the wall's, and the process's own, which other programs on the machine disturb less. Load, threads and
processor are written with the numbers.
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
from tqdm import tqdm

from chronomoe.config import compose_config
from chronomoe.model.chunked_wkv import CHUNK, wkv_chunked
from chronomoe.model.lm import LanguageModel
from chronomoe.model.wkv import LOWEST_LOG_DECAY, wkv_recurrent
from chronomoe.training.allocator import keep_freed_memory
from chronomoe.training.autotune import Workload, measure, processor_name, use

HEAD_WIDTH = 64
SHAPES = ((1, 4), (1, 12), (4, 8))
"""(batch, heads) of the recurrence alone."""
LENGTHS = (256, 512, 1024, 2048, 4096)
POSITIONS = (64, 512, 2048, 8192)
DECODED = 64
"""Tokens of a timed piece of decoding."""
MODELS = {
    "Mixtral, TTTT": ["model=mixtral_4x8"],
    "hybrid, RRRT": ["model=cdrmix_tiny"],
    "hybrid, RRRT, window 256": ["model=cdrmix_tiny", "model.attention_window=256"],
    "pure RWKV-7, RRRR": ["model=cdrmix_tiny", "model.schedule=RRRR"],
}
COLOURS = {"Mixtral, TTTT": "#D55E00", "hybrid, RRRT": "#0072B2", "hybrid, RRRT, window 256": "#56B4E9"}
Run = Callable[[], object]
Times = list[tuple[float, float]]
"""(wall, process) seconds, repeat by repeat."""


def recurrence_step(batch: int, length: int, heads: int, chunk: int | None) -> Run:
    """A forward and a backward pass; None: token by token."""
    shape = (batch, length, heads, HEAD_WIDTH)
    key, rate = normalize(torch.randn(shape), dim=-1), torch.rand(shape)
    log_w = LOWEST_LOG_DECAY * torch.rand(shape)
    drawn = torch.randn(shape), log_w, torch.randn(shape), torch.randn(shape), -key, rate * key
    given = [x.requires_grad_() for x in (*drawn, torch.zeros(batch, heads, HEAD_WIDTH, HEAD_WIDTH))]
    directions = torch.randn(shape), torch.randn(batch, heads, HEAD_WIDTH, HEAD_WIDTH)

    def run() -> None:
        outputs = wkv_recurrent(*given) if chunk is None else wkv_chunked(*given, chunk=chunk)
        torch.autograd.grad(outputs, given, directions)

    return run


def build(overrides: list[str]) -> LanguageModel:
    config = compose_config([*overrides, f"model.max_seq_len={max(POSITIONS) + DECODED + 1}"])
    torch.manual_seed(0)
    model = LanguageModel(config.model, config.router)
    work = Workload(batch=1, length=512, dtype=torch.float32, device=torch.device("cpu"))
    use(model, measure(config.model, config.router, work))  # what training would choose on this machine
    return model


def training_step(model: LanguageModel, length: int) -> Run:
    ids_BS = torch.randint(model.settings.vocab_size, (1, length + 1), generator=torch.Generator().manual_seed(length))

    def run() -> None:
        model.train()
        model(ids_BS[:, :-1]).loss(ids_BS[:, 1:]).backward()
        model.zero_grad()

    return run


class Decoding:
    """DECODED tokens from a position on, again and again from there."""

    def __init__(self, model: LanguageModel, position: int) -> None:
        self.model = model.eval()
        self.before = model.new_state(1)
        ids_BS = torch.randint(model.settings.vocab_size, (1, position), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for piece_BS in ids_BS.split(512, dim=1):
                model(piece_BS, state=self.before)
        self.num_bytes = self.before.num_bytes

    def prepare(self) -> Run:
        state, ids_BS = self.before.clone(), torch.zeros(1, 1, dtype=torch.int64)
        self.model.eval()

        def run() -> None:
            with torch.no_grad():
                for _ in range(DECODED):
                    ids_BS.copy_(self.model(ids_BS, state=state).last_logits_BV.argmax(dim=-1, keepdim=True))

        return run


def time_in_turn(prepared: dict[str, Callable[[], Run]], repeats: int, what: str) -> dict[str, Times]:
    """Of each, after one unmeasured; what prepares a run is not timed."""
    for prepare in prepared.values():
        prepare()()
    found: dict[str, Times] = {name: [] for name in prepared}
    for _ in tqdm(range(repeats), desc=what, leave=False):
        for name, prepare in prepared.items():
            run = prepare()
            wall, process = time.perf_counter(), time.process_time()
            run()
            found[name].append((time.perf_counter() - wall, time.process_time() - process))
    return found


def ratio(above: Times, below: Times) -> dict[str, float]:
    """Medians over repeats, by both clocks."""
    return {
        clock: statistics.median(a[n] / b[n] for a, b in zip(above, below, strict=True))
        for n, clock in enumerate(("wall", "process"))
    }


def median_ms(times: Times, each: int = 1) -> dict[str, float]:
    return {clock: 1e3 * statistics.median(t[n] for t in times) / each for n, clock in enumerate(("wall", "process"))}


def measure_recurrence(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for batch, heads in SHAPES:
        chosen = {
            "loop": recurrence_step(batch, 512, heads, None),
            "chunks": recurrence_step(batch, 512, heads, CHUNK),
            "short": recurrence_step(batch, 1024, heads, CHUNK),
            "long": recurrence_step(batch, 4096, heads, CHUNK),
        }
        prepared = {name: (lambda run=run: run) for name, run in chosen.items()}
        found = time_in_turn(prepared, repeats, f"recurrence {batch} x {heads}")
        shape = {"batch": batch, "heads": heads}
        rows.append({"what": "loop over chunks, T = 512", **shape, **ratio(found["loop"], found["chunks"])})
        rows.append({"what": "T = 4096 over T = 1024", **shape, **ratio(found["long"], found["short"])})
    return rows


def measure_models(repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a token."""
    models = {name: build(overrides) for name, overrides in MODELS.items()}
    rows: list[dict[str, Any]] = []
    for length in LENGTHS:
        steps = {name: training_step(model, length) for name, model in models.items()}
        found = time_in_turn({n: (lambda run=run: run) for n, run in steps.items()}, repeats, f"training, {length}")
        for name, times in found.items():
            against = ratio(times, found["Mixtral, TTTT"])["process"]
            rows.append({"what": "training", "model": name, "tokens": length, **median_ms(times, length)})
            rows[-1]["against_mixtral"] = against
    for position in POSITIONS:
        decodings = {name: Decoding(model, position) for name, model in models.items()}
        found = time_in_turn({n: d.prepare for n, d in decodings.items()}, repeats, f"decoding at {position}")
        for name, times in found.items():
            rows.append({"what": "decoding", "model": name, "tokens": position, **median_ms(times, DECODED)})
            rows[-1] |= {"against_mixtral": ratio(times, found["Mixtral, TTTT"])["process"]}
            rows[-1] |= {"state_bytes": decodings[name].num_bytes}
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Process time a token: training against length, decoding against position; bytes of state against position."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("training", "process", 1.0, "training: ms a token", "tokens of a sequence"),
        ("decoding", "process", 1.0, "decoding: ms a token", "position"),
        ("decoding", "state_bytes", 2**-20, "state: MiB a sequence", "position"),
    )
    for axes, (what, key, unit, title, label) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in MODELS:
            chosen = [row for row in rows if row["what"] == what and row["model"] == name]
            xs, ys = [row["tokens"] for row in chosen], [row[key] * unit for row in chosen]
            axes.plot(xs, ys, marker="o", label=name, color=COLOURS.get(name, "#009E73"))
        axes.set_xscale("log", base=2)
        axes.set_xticks(xs, [f"{x:,}" for x in xs])
        axes.minorticks_off()
        axes.set_ylim(0, None)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="RWKV-7's recurrence and the hybrids beside Mixtral.")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repeats")
    parser.add_argument("--output", default="outputs/hybrid_speed.json", help="where the numbers go")
    parser.add_argument("--figure", default="outputs/hybrid_speed.png", help="where the figure goes")
    chosen = parser.parse_args()
    keep_freed_memory()
    load = os.getloadavg()
    recurrence = measure_recurrence(chosen.repeats)
    print("| recurrence, ratio of times | batch x heads | wall | process |\n|---|---|---|---|")
    for row in recurrence:
        print(f"| {row['what']} | {row['batch']} x {row['heads']} | {row['wall']:.2f} | {row['process']:.2f} |")
    models = measure_models(chosen.repeats)
    print("\n| | model | tokens | ms a token, wall | process | over Mixtral's | state, KiB |")
    print("|---|---|---|---|---|---|---|")
    for row in models:
        kept = f"{row['state_bytes'] / 2**10:,.0f}" if "state_bytes" in row else "–"
        print(
            f"| {row['what']} | {row['model']} | {row['tokens']:,} | {row['wall']:.3f} | {row['process']:.3f} "
            f"| {row['against_mixtral']:.2f} | {kept} |"
        )
    machine = {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average_before": load,
        "load_average_after": os.getloadavg(),
    }
    path = Path(chosen.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine, "settings": vars(chosen), "recurrence": recurrence, "models": models}
    path.write_text(json.dumps(result, indent=2) + "\n")
    draw(models, Path(chosen.figure))
    print(f"{machine}; {path}, {chosen.figure}")


if __name__ == "__main__":
    main()
