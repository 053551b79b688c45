"""What watching costs: seconds of each reading and of the controller, as shares of a whole training step.

    python scripts/sensing_cost.py [repeats]

Each repeat times one step of every arm, one after the other; shares are medians over repeats. Grouped is the dropless
Mixtral, batched the same with a capacity (docs/performance.md).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from tqdm import tqdm

from chronomoe.benchmark.ours import controlled, learner
from chronomoe.config import compose_config
from chronomoe.model import lm
from chronomoe.model.lm import LanguageModel

ARMS = {
    "grouped, chronovisor": ["chrono.phi=true"],
    "batched, chronovisor": ["chrono.phi=true", "router.capacity_factor=1.25"],
    "grouped, quantile": ["chrono=quantile"],
    "grouped, bip": ["chrono=bip"],
}
Seconds = dict[str, list[float]]


def timed(name: str, function: Callable, spent: dict[str, float]) -> Callable:
    def call(*arguments: object) -> object:
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[name] += time.perf_counter() - started

    return call


def build(overrides: list[str], batch_BS: torch.Tensor) -> Callable[[], dict[str, float]]:
    """A step that returns its seconds: the whole, every reading, and the controller with its metrics."""
    config = compose_config(overrides)
    torch.manual_seed(0)
    model = LanguageModel(config.model, config.router, config.chrono.actuation)
    model.train()
    learning, control = learner(model, config), controlled(model, config)
    spent: dict[str, float] = defaultdict(float)
    probes = [probe._replace(read=timed(probe.name, probe.read, spent)) for probe in model.probes]
    model.probes = probes
    for block in model.blocks:
        if block.ffn.router.balancer is not None:
            block.ffn.router.balancer = timed("solver", block.ffn.router.balancer, spent)

    def step() -> dict[str, float]:
        spent.clear()
        plain = lm.read_layer
        lm.read_layer = timed("all readings", plain, spent)
        started = time.perf_counter()
        try:
            learning.losses(batch_BS[:, :-1], batch_BS[:, 1:]).total.backward()
            learning.clip(config.trainer.gradient_clip)
            timed("controller and metrics", control, spent)(True)
            learning.optimizer.step()
            learning.optimizer.zero_grad()
        finally:
            lm.read_layer = plain
        return {**spent, "step": time.perf_counter() - started}

    return step


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    vocabulary = compose_config([]).model.vocab_size
    batch_BS = torch.randint(vocabulary, (16, 129), generator=torch.Generator().manual_seed(0))
    steps = {name: build(overrides, batch_BS) for name, overrides in ARMS.items()}
    for step in steps.values():
        step()
    found: dict[str, Seconds] = {name: defaultdict(list) for name in ARMS}
    for _ in tqdm(range(repeats), desc="repeats"):
        for name, step in steps.items():
            for part, seconds in step().items():
                found[name][part].append(seconds)
    print("| arm | part | share of a step, median (range) |")
    print("|---|---|---|")
    for name, parts in found.items():
        for part in parts.keys() - {"step"}:
            shares = [mine / whole for mine, whole in zip(parts[part], parts["step"], strict=True)]
            print(f"| {name} | {part} | {statistics.median(shares):.2%} ({min(shares):.2%} to {max(shares):.2%}) |")


if __name__ == "__main__":
    main()
