"""What every process is given: config and batches; and where weights are compared, the weights and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chronomoe.config import TrainConfig
from chronomoe.model.lm import LanguageModel
from chronomoe.settings import InputError

SEED = 0
FEW_TOKENS = 64
"""Tokens whose logits a GPU is compared on."""
NUM_PAIRED_BATCHES = 8
"""Paired steps draw from so many batches, so that there is something to learn."""


@dataclass(kw_only=True)
class Job:
    config: TrainConfig
    device: str
    threads: int
    data: str
    """A file of `save_batches` or `save_reference`."""


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def draw_batches(config: TrainConfig, batch_size: int, seq_len: int) -> dict[str, Tensor]:
    """`batch_BS`, which timed steps repeat, and `paired_NBS`; random ids, one more position than a step has tokens."""
    if seq_len > config.model.max_seq_len:
        raise InputError(
            f"seq_len={seq_len} exceeds model.max_seq_len={config.model.max_seq_len}: lower it, or add "
            f"model.max_seq_len={seq_len} to overrides"
        )
    generator = torch.Generator().manual_seed(SEED)
    shape = (NUM_PAIRED_BATCHES + 1, batch_size, seq_len + 1)
    ids_NBS = torch.randint(config.model.vocab_size, shape, generator=generator)
    return {"batch_BS": ids_NBS[0].clone(), "paired_NBS": ids_NBS[1:].clone()}


def save_batches(config: TrainConfig, batch_size: int, seq_len: int, path: Path) -> None:
    torch.save(draw_batches(config, batch_size, seq_len), path)


def save_reference(config: TrainConfig, batch_size: int, seq_len: int, path: Path, device: str = "cpu") -> None:
    """Batches, initial weights, and the logits that every system of the same function must give for them in fp32.

    The weights are drawn on `device`, the logits are a processor's. A GPU is compared on a few tokens: among many,
    some stand so close between two experts that another order of summation sends them elsewhere.
    """
    batches = draw_batches(config, batch_size, seq_len)
    torch.manual_seed(SEED)
    with torch.device(device):
        model = LanguageModel(config.model, config.router)
    model = model.cpu().eval()
    ids_BS = batches["batch_BS"][:, :-1]
    if device != "cpu":
        ids_BS = ids_BS[:1, :FEW_TOKENS]
        torch.cuda.empty_cache()
    with torch.no_grad():
        logits_BSV = torch.cat([model(ids_1S).logits_BSV for ids_1S in ids_BS.split(1)])
    torch.save({**batches, "weights": model.state_dict(), "logits_BSV": logits_BSV}, path)


def paired_order(steps: int) -> list[int]:
    """Which batch each paired step takes, the same for every system."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return torch.randint(NUM_PAIRED_BATCHES, (steps,), generator=generator).tolist()
