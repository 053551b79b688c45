"""Tiny hybrid models for the tests, and how far apart two tensors are.

Axes: B batch, S sequence, D dim, V vocabulary, E experts, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput
from chronomoe.model.settings import ModelSettings, RouterSettings

SCHEDULES: dict[str, dict[str, object]] = {
    "top": {"schedule": "top", "num_layers": 6},  # RRRTTT
    "interleave": {"schedule": "interleave", "num_layers": 6},  # RTRTRT
    "hybrid": {"schedule": "hybrid", "num_layers": 6},  # RRTRTT
    "attention first": {"schedule": "TRRTR", "num_layers": 5},
}
EXACT, SINGLE = 1e-10, 1e-5
"""Relative tolerances in fp64 and in fp32 (section 2.4 of the reference)."""
MARGIN = 1e-4
"""Tokens whose k-th and next gate logits are nearer than this may be routed either way."""
VOCABULARY = 50


def hybrid_settings(**overrides: object) -> ModelSettings:
    sizes: dict = {
        "schedule": "RRT",
        "num_layers": 3,
        "num_experts": 4,
        "dim": 64,
        "hidden_dim": 24,
        "activation": "gelu",
        "num_heads": 4,
        "num_kv_heads": 2,
        "vocab_size": VOCABULARY,
        "max_seq_len": 256,
        "norm": "layer",
    }
    if overrides.get("schedule") in ("top", "interleave", "hybrid"):
        sizes["attention_share"] = "1/2"
    return ModelSettings(**(sizes | overrides))


def hybrid_model(
    *, dtype: torch.dtype = torch.float64, seed: int = 0, router: dict | None = None, **overrides: object
) -> LanguageModel:
    """In eval mode, with random numbers on top of every initial value: zeros and constants would hide faults."""
    torch.manual_seed(seed)
    routing = RouterSettings(**({"kind": "mixtral", "top_k": 2} | (router or {})))
    model = LanguageModel(hybrid_settings(**overrides), routing)
    randomise(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.1 if parameter.dim() == 1 else parameter.shape[-1] ** -0.5
        parameter += scale * torch.randn(parameter.shape, generator=generator)


def draw_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def clear_tokens(routings: list[RouterOutput], batch: int) -> Tensor:
    """bool [B, S]: tokens that every layer up to the end routes by more than MARGIN, and so do those before them, on
    which they depend."""
    clear_BS = torch.ones((), dtype=torch.bool)
    for routing in routings:
        top_k = routing.topk_expert_ids_TK.shape[1]
        sorted_TE = routing.scores_TE.sort(dim=-1, descending=True).values
        gap_T = sorted_TE[:, top_k - 1] - sorted_TE[:, top_k]
        clear_BS = clear_BS & (gap_T > MARGIN).view(batch, -1)
    return clear_BS.cummin(dim=1).values
