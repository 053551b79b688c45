"""`python -m chronomoe.generate run=<dir> prompt="…"`: continue a text with a trained model, printing as it goes.

Standard output holds the text and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chronomoe.chrono.checks import check_decoding
from chronomoe.config import TrainConfig, load_config
from chronomoe.data.tokenizer import LanguageTokenizer, load_tokenizer
from chronomoe.entry import guarded, read_arguments
from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel
from chronomoe.settings import InputError, setting
from chronomoe.training.allocator import keep_freed_memory
from chronomoe.training.autotune import Kernels, use
from chronomoe.training.resuming import read_checkpoint


@dataclass(kw_only=True)
class GenerateSettings:
    run: str = setting()
    """A run's directory."""
    prompt: str = setting()
    """The text to continue."""
    max_new_tokens: int = setting(200, low=1)
    """Tokens to write; an end-of-document token ends it sooner."""
    temperature: float = setting(0.8, low=0.0)
    """0 always takes the most likely token."""
    top_p: float = setting(0.95, low=0.0, high=1.0)
    """Sample from the smallest set of tokens with this much probability."""
    seed: int = setting(0, low=0)
    """Same seed, same text."""
    checkpoint: str = setting("best", choices=["best", "last"])
    """Which of the run's checkpoints."""


def load_model(run_dir: Path, checkpoint: str) -> tuple[LanguageModel, TrainConfig]:
    """A run's model in eval mode on the CPU, its frozen field included."""
    config = load_config(run_dir / "config.yaml")
    model = LanguageModel(config.model, config.router, config.chrono.actuation)
    path = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    if checkpoint == "best" and not path.exists():
        path = path.with_name("last.ckpt")  # stopped before its first evaluation
    saved = read_checkpoint(path, key="run")
    weights = saved["state_dict"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    use(model, Kernels(library=saved.get("kernels", {}).get("library", "torch")))  # the others may be a GPU's
    return model.eval(), config


def main() -> None:
    settings = read_arguments(GenerateSettings, sys.argv[1:])
    keep_freed_memory()
    run_dir = Path(settings.run)
    model, config = load_model(run_dir, settings.checkpoint)
    check_decoding(config.chrono)
    language = load_tokenizer(str(run_dir / "tokenizer"))
    prompt = language.tokenizer.encode(settings.prompt).ids
    if not prompt:
        raise InputError("prompt is empty: give at least one word")
    room = config.model.longest_text - len(prompt)
    if settings.max_new_tokens > room:
        raise InputError(
            f"max_new_tokens={settings.max_new_tokens} and a prompt of {len(prompt)} tokens exceed model.max_seq_len="
            f"{config.model.max_seq_len}: " + (f"use max_new_tokens={room}" if room > 0 else "shorten the prompt")
        )
    new_tokens = generate(
        model,
        torch.tensor([prompt]),
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    print(settings.prompt, end="", flush=True)
    for piece in stream_text(new_tokens, language):
        print(piece, end="", flush=True)
    print()


def stream_text(new_tokens: Iterable[Tensor], language: LanguageTokenizer) -> Iterator[str]:
    """Text as it becomes certain, up to the end of the document: a character may need several tokens."""
    ids: list[int] = []
    written = 0
    for token_B in new_tokens:
        if token_B.item() == language.eos_id:
            break
        ids.append(int(token_B.item()))
        text = language.tokenizer.decode(ids)
        if not text.endswith("\ufffd"):  # a broken character may be completed by the next token
            yield text[written:]
            written = len(text)
    yield language.tokenizer.decode(ids)[written:]


if __name__ == "__main__":
    guarded(main)
