"""Tiny models, texts and calibrations for the tests of sessions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.session.calibration import Calibration, calibrate
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings

VOCABULARY = 40
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixtral": ({"num_layers": 2, "num_experts": 8}, {"top_k": 2}),
    "switch": ({"num_layers": 2, "num_experts": 8}, {"kind": "switch", "gate": "softmax", "top_k": 1}),
    "deepseek": (
        {"num_layers": 2, "num_experts": 8, "num_shared_experts": 1},
        {"top_k": 3, "gate": "sigmoid"},
    ),
    "cdrmix": (
        {"num_layers": 3, "num_experts": 4, "schedule": "RRT", "dim": 64, "norm": "layer", "activation": "gelu"},
        {"top_k": 2},
    ),
}


def build(family: str, seed: int = 0, **overrides: Any) -> LanguageModel:
    """Random weights, large enough that tokens differ in what they are and where they go."""
    sizes, router = FAMILIES[family]
    torch.manual_seed(seed)
    settings = ModelSettings(
        **(
            {
                "dim": 32,
                "hidden_dim": 32,
                "num_heads": 4,
                "num_kv_heads": 2,
                "vocab_size": VOCABULARY,
                "max_seq_len": 1024,
                "init_std": 0.3,
            }
            | sizes
            | overrides
        )
    )
    model = LanguageModel(settings, RouterSettings(**({"kind": "mixtral"} | router))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # what begins at zero would hide faults
            parameter += 0.1 * torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
        model.head.weight.mul_(3.0)
    return model


def made_text(length: int, seed: int = 0) -> list[int]:
    """Phrases in random order: some tokens follow from others, and some 4-grams come again."""
    generator = torch.Generator().manual_seed(seed)
    phrases = torch.randint(VOCABULARY, (24, 6), generator=torch.Generator().manual_seed(99))
    order = torch.randint(24, (length // 6 + 1,), generator=generator)
    return phrases[order].flatten()[:length].tolist()


@lru_cache
def calibrated(family: str) -> tuple[LanguageModel, Calibration]:
    model = build(family)
    return model, calibrate(model, made_text(3000), block_tokens=256, least_tokens=3000)


def open_session(family: str = "mixtral", *, prompt: list[int] | None = None, **settings: Any) -> Session:
    """A session that has read its prompt."""
    model, calibration = calibrated(family)
    session = Session(model, calibration, SessionSettings(**({"chunk_tokens": 10} | settings)))
    session.begin(made_text(40, seed=7) if prompt is None else prompt)
    return session


def go_on(session: Session, chunks: int) -> Session:
    for _ in range(chunks):
        session.next_chunk()
        session.command("continue")
    return session
