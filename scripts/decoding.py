"""Greedy decoding against transformers' `generate`: tokens per second on the same weights, in one interleaved run.

    python scripts/decoding.py [--repeats 5] [--dtype float32] [--keep-freed-memory] [--output outputs/decoding.json]

Same random weights, prompts and threads on every side, a key-value cache everywhere, nothing drawn. New ids are
compared first: where they differ, either the two likeliest tokens lie within MARGIN of each other, which is reported,
or the run ends with an error.
Every repeat times every system once, beginning with another one; ratios are formed repeat by repeat, against
the peer whose median is best. A first token's time is that of the prompt; a step is what every further one takes.
`--keep-freed-memory` lets the whole process, all systems in it, keep what it freed (chronomoe/training/allocator.py).
Needs `pip install -e ".[hf]"`. Machine and limit are written with the numbers (docs/performance.md, "Generation").
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from chronomoe.config import TrainConfig, compose_config
from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sizing import measure
from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral
from chronomoe.training import autotune
from chronomoe.training.allocator import keep_freed_memory

REFERENCE = ["model=mixtral_4x16", "model.vocab_size=8192"]
PEERS = {
    f"transformers {experts}, {cache} cache": (experts, cache)
    for experts in ("eager", "grouped_mm")
    for cache in ("dynamic", "static")
}
OURS = "chronomoe"
MARGIN = 1e-4
Greedy = Callable[[Tensor, int], Tensor]
"""(prompt ids [B, S], how many) -> new ids [B, N]."""


def ours(model: LanguageModel) -> Greedy:
    def run(prompt_BS: Tensor, count: int) -> Tensor:
        return torch.stack(list(generate(model, prompt_BS, max_new_tokens=count, temperature=0)), dim=1)

    return run


def peer(model: LanguageModel, config: TrainConfig, experts: str, cache: str) -> Greedy:
    hf_config = mixtral_config(config.model, config.router)
    hf_config._experts_implementation = experts
    theirs = transformers.MixtralForCausalLM(hf_config).eval()
    theirs.load_state_dict(to_mixtral(model.state_dict(), config.model))
    theirs.to(model.embedding.weight.dtype)
    options: dict[str, Any] = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    if cache == "static":
        options["cache_implementation"] = "static"

    def run(prompt_BS: Tensor, count: int) -> Tensor:
        seen_BS = torch.ones_like(prompt_BS)  # else every 0 in a prompt is taken for padding
        whole_BS: Tensor = theirs.generate(prompt_BS, attention_mask=seen_BS, max_new_tokens=count, **options)
        return whole_BS[:, prompt_BS.shape[1] :]

    return run


@torch.no_grad()
def differences(model: LanguageModel, prompt_BS: Tensor, mine_BN: Tensor, theirs_BN: Tensor) -> list[float]:
    """The margin between the two likeliest tokens where each row first differs. Raises RuntimeError above MARGIN."""
    margins = []
    for prompt_S, mine_N, theirs_N in zip(prompt_BS, mine_BN, theirs_BN, strict=True):
        if torch.equal(mine_N, theirs_N):
            continue
        first = int((mine_N != theirs_N).nonzero()[0])
        logits_V = model(torch.cat((prompt_S, mine_N[:first]))[None]).last_logits_BV[0]
        likeliest = logits_V.float().topk(2).values
        margins.append(float(likeliest[0] - likeliest[1]))
        if margins[-1] > MARGIN and model.embedding.weight.dtype == torch.float32:
            raise RuntimeError(f"new token {first} differs although the likeliest leads by {margins[-1]:.1e}")
    return margins


def seconds(system: Greedy, prompt_BS: Tensor, count: int) -> float:
    started = time.perf_counter()
    system(prompt_BS, count)
    return time.perf_counter() - started


def bandwidth() -> float:
    """GB/s of reading a tensor larger than any cache, the best of five."""
    large = torch.ones(64 * 2**20)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        large.sum()
        times.append(time.perf_counter() - started)
    return large.nbytes / min(times) / 1e9


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(
    model: LanguageModel, systems: dict[str, Greedy], batch: int, length: int, count: int, repeats: int
) -> list[dict[str, Any]]:
    """One row per system, for one shape of prompt."""
    drawn = torch.Generator().manual_seed(batch * length)
    prompt_BS = torch.randint(model.settings.vocab_size, (batch, length), generator=drawn)
    new = {name: system(prompt_BS, count) for name, system in systems.items()}  # the warm-up, too
    margins = {name: differences(model, prompt_BS, new[OURS], new[name]) for name in systems}
    first: dict[str, list[float]] = {name: [] for name in systems}
    whole: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for repeat in tqdm(range(repeats), desc=f"batch {batch}, prompt {length}", leave=False):
        for place in range(len(names)):
            name = names[(place + repeat) % len(names)]
            first[name].append(seconds(systems[name], prompt_BS, 1))
            whole[name].append(seconds(systems[name], prompt_BS, count))
    best = min((name for name in names if name != OURS), key=lambda name: statistics.median(whole[name]))
    return [
        {
            "system": name,
            "batch": batch,
            "prompt": length,
            "tokens_per_sec": spread([batch * count / s for s in whole[name]]),
            "first_token_ms": spread([1e3 * s for s in first[name]]),
            "step_ms": spread([1e3 * (w - f) / (count - 1) for w, f in zip(whole[name], first[name], strict=True)]),
            "against_best_peer": spread([b / mine for b, mine in zip(whole[best], whole[name], strict=True)]),
            "margins_where_ids_differ": margins[name],
        }
        for name in names
    ]


def written(of: dict[str, float], digits: int = 0) -> str:
    return f"{of['median']:,.{digits}f} ({of['min']:,.{digits}f}–{of['max']:,.{digits}f})"


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "| batch | prompt | system | tokens/s, median (range) | first token, ms | step, ms | against best peer | ids |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        margins = row["margins_where_ids_differ"]
        ids = f"{len(margins)} differ, margin ≤ {max(margins):.0e}" if margins else "equal"
        print(
            f"| {row['batch']} | {row['prompt']} | {row['system']} | {written(row['tokens_per_sec'])} "
            f"| {row['first_token_ms']['median']:.1f} | {written(row['step_ms'], 2)} "
            f"| {written(row['against_best_peer'], 2)}x | {ids} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Greedy decoding against transformers.")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens to write")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="prompts at once")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 128], help="tokens of a prompt")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights")
    parser.add_argument("--keep-freed-memory", action="store_true", help="for every system alike")
    parser.add_argument("--output", default="outputs/decoding.json", help="where the numbers go")
    chosen = parser.parse_args()
    kept = chosen.keep_freed_memory and keep_freed_memory()
    transformers.logging.set_verbosity_error()
    config = compose_config(REFERENCE)
    torch.manual_seed(0)
    model = LanguageModel(config.model, config.router).eval().to(getattr(torch, chosen.dtype))
    work = autotune.Workload(
        batch=1, length=256, dtype=model.embedding.weight.dtype, device=torch.device("cpu")
    )  # what training would choose on this machine
    kernels = autotune.measure(config.model, config.router, work)
    autotune.use(model, kernels)
    systems = {OURS: ours(model)} | {name: peer(model, config, *how) for name, how in PEERS.items()}
    rows = []
    for batch in chosen.batches:
        for length in chosen.prompts:
            rows += compare(model, systems, batch, length, chosen.new_tokens, chosen.repeats)
    embedding = config.model.vocab_size * config.model.dim
    active = measure(model, config.router.experts_per_token).active - embedding
    result = {
        "machine": {
            "processor": autotune.processor_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "read_gb_per_sec": bandwidth(),
        },
        "settings": vars(chosen) | {"freed_memory_kept": kept, "kernels": vars(kernels)},
        "bytes_of_weights_per_token": active * model.embedding.weight.element_size(),
        "rows": rows,
    }
    path = Path(chosen.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print_table(rows)
    floor = result["bytes_of_weights_per_token"] / result["machine"]["read_gb_per_sec"] / 1e6
    print(
        f"{result['bytes_of_weights_per_token'] / 1e6:.1f} MB of weights per token of one sequence, "
        f"{result['machine']['read_gb_per_sec']:.0f} GB/s: no step under {floor:.2f} ms from memory; {path}"
    )


if __name__ == "__main__":
    main()
