"""What the machine can do at all: the best matrix product, the fastest copy; and how many products a step needs.

    FLOP per token = 3 (2 N + 2 D V + 2 L S D)    N active parameters without embedding and head; causal attention once
The limit is the best rate over a large square product and the shapes the model multiplies, and over the ways torch has
to multiply them: on a processor `torch.mm` may go to another library than oneDNN, and either may be the faster one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronomoe.config import TrainConfig
from chronomoe.model.products import by_onednn
from chronomoe.model.sizing import size_of

SQUARE = {"cpu": 2048, "cuda": 8192}
"""Rows of the large square product: enough to fill the device."""
ATTEMPTS = 5
COPIED_BYTES = 2**28
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    """[rows, inner] times [inner, columns]."""

    rows: int
    inner: int
    columns: int


def shapes_of(config: TrainConfig, tokens: int, device: str = "cpu") -> list[Shape]:
    """A large square, and the products of one expert with its fair share of the tokens, and of the head."""
    model = config.model
    share = max(1, round(tokens * config.router.experts_per_token / model.num_experts))
    return [
        Shape(SQUARE[device], SQUARE[device], SQUARE[device]),
        Shape(share, model.dim, 2 * model.hidden_dim),
        Shape(share, model.hidden_dim, model.dim),
        Shape(tokens, model.dim, model.vocab_size),
    ]


class Limits:
    """Measured in a process of its own, before and after everything else."""

    def __init__(self, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device(device)

    def tflops(self, dtype: str, shapes: list[Shape]) -> dict[str, float]:
        """ "rows x inner x columns, way" -> TFLOP/s, the best of some attempts."""
        found = {}
        for shape in shapes:
            a = torch.randn(shape.rows, shape.inner, dtype=DTYPES[dtype], device=self.device)
            b = torch.randn(shape.columns, shape.inner, dtype=DTYPES[dtype], device=self.device)
            for way, multiply in ways(a, b):
                flop = 2 * shape.rows * shape.inner * shape.columns
                found[f"{' x '.join(map(str, shape))}, {way}"] = flop / self.fastest(multiply) / 1e12
        return found

    def copied_gb_per_sec(self) -> float:
        """Bytes read and written by a large copy, 10^9 a second."""
        source = torch.ones(COPIED_BYTES // 4, device=self.device)
        target = torch.empty_like(source)
        return 2 * COPIED_BYTES / self.fastest(lambda: target.copy_(source)) / 1e9

    def fastest(self, function: Callable[[], Any]) -> float:
        """Seconds of the fastest call; calls are gathered until a clock can tell them apart."""
        calls, best = 1, float("inf")
        for _ in range(ATTEMPTS + 1):
            started = time.perf_counter()
            for _ in range(calls):
                function()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - started) / calls
            best, calls = min(best, seconds), max(1, round(0.02 / seconds))
        return best


def ways(a: Tensor, b: Tensor) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The ways to multiply a [m, k] with b [n, k] transposed, and with it laid out anew."""
    laid_out = b.T.contiguous()
    yield "mm", lambda: torch.mm(a, laid_out)
    yield "mm, transposed", lambda: torch.mm(a, b.T)
    if a.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        yield "oneDNN", lambda: by_onednn(a, b)


def flop_per_token(config: TrainConfig, seq_len: int) -> int:
    """Of a training step of the model of this config, dense or not."""
    model = config.model
    embeddings = model.vocab_size * model.dim * (1 if model.tie_embeddings else 2)
    inner = size_of(model, config.router).active - embeddings
    head, attention = model.dim * model.vocab_size, model.num_layers * seq_len * model.dim
    return 3 * (2 * inner + 2 * head + 2 * attention)
