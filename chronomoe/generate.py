"""`python -m chronomoe.generate run=<dir> prompt="…"`: continue a text with a trained model, printing as it goes.

Standard output holds the text and nothing else. `save=<file>` keeps where it stopped, and `resume=<file>` goes on from
there, with a further prompt or without: the text is the one that a single command would have written.
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
from chronomoe.saved_generation import Session, check_target, load_session, new_session
from chronomoe.settings import InputError, setting
from chronomoe.training.allocator import keep_freed_memory
from chronomoe.training.autotune import Kernels, use
from chronomoe.training.resuming import read_checkpoint


@dataclass(kw_only=True)
class GenerateSettings:
    run: str = setting()
    """A run's directory."""
    prompt: str | None = setting(None)
    """The text to continue; may be left out with `resume`, and stands behind what was written before."""
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
    save: str | None = setting(None)
    """A file for what is needed to go on."""
    resume: str | None = setting(None)
    """Such a file, of the same run and checkpoint. Its temperature, top_p and random numbers hold unless the command
    gives its own."""


def checkpoint_file(run_dir: Path, checkpoint: str) -> Path:
    path = run_dir / "checkpoints" / f"{checkpoint}.ckpt"
    if checkpoint == "best" and not path.exists():
        return path.with_name("last.ckpt")  # stopped before its first evaluation
    return path


def load_model(run_dir: Path, checkpoint: str) -> tuple[LanguageModel, TrainConfig]:
    """A run's model in eval mode on the CPU, its frozen field included."""
    config = load_config(run_dir / "config.yaml")
    model = LanguageModel(config.model, config.router, config.chrono.actuation)
    saved = read_checkpoint(checkpoint_file(run_dir, checkpoint), key="run")
    weights = saved["state_dict"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    use(model, Kernels(library=saved.get("kernels", {}).get("library", "torch")))  # the others may be a GPU's
    return model.eval(), config


def main() -> None:
    settings = read_arguments(GenerateSettings, sys.argv[1:])
    if settings.prompt is None and settings.resume is None:
        raise InputError("prompt must be given: add prompt=… to the command")
    if settings.save is not None:
        check_target(Path(settings.save))
    keep_freed_memory()
    run_dir = Path(settings.run)
    model, config = load_model(run_dir, settings.checkpoint)
    check_decoding(config.chrono)
    language = load_tokenizer(str(run_dir / "tokenizer"))
    prompt = language.tokenizer.encode(settings.prompt or "").ids
    if not prompt and settings.resume is None:
        raise InputError("prompt is empty: give at least one word")
    session = open_session(settings, model, prompt)
    before = session.state.position + len(session.unread)
    room = config.model.longest_text - before
    if settings.max_new_tokens > room:
        raise InputError(
            f"max_new_tokens={settings.max_new_tokens} and {before} tokens before them exceed model.max_seq_len="
            f"{config.model.max_seq_len}: " + (f"use max_new_tokens={room}" if room > 0 else "shorten the prompt")
        )
    new_tokens = generate(
        model,
        torch.tensor([session.unread]),
        max_new_tokens=settings.max_new_tokens,
        temperature=session.temperature,
        top_p=session.top_p,
        generator=session.generator,
        state=session.state,
    )
    for piece in stream_text(session, new_tokens, language, settings.prompt or "", hold=settings.save is not None):
        print(piece, end="", flush=True)
    print()
    if settings.save is not None:
        session.save(Path(settings.save), model)


def open_session(settings: GenerateSettings, model: LanguageModel, prompt: list[int]) -> Session:
    """A new one or that of the file, the prompt behind what is unread."""
    if settings.resume is None:
        session = new_session(
            model,
            min(len(prompt) + settings.max_new_tokens, model.settings.max_seq_len),
            seed=settings.seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
    else:
        session = load_session(Path(settings.resume), model)
        given = {argument.partition("=")[0] for argument in sys.argv[1:]}
        for name in given & {"temperature", "top_p"}:
            setattr(session, name, getattr(settings, name))
        if "seed" in given:
            session.generator.manual_seed(settings.seed)
    session.unread += prompt
    return session


def stream_text(
    session: Session, new_tokens: Iterable[Tensor], language: LanguageTokenizer, prompt: str, *, hold: bool
) -> Iterator[str]:
    """The prompt, and text as it becomes certain, up to the end of the document: a character may need several tokens.
    One that is incomplete at the end is shown as such, or held for whoever goes on."""
    decode = language.tokenizer.decode
    if prompt:
        yield decode(session.unwritten) + prompt
        session.unwritten = []
    ids, written, certain = session.unwritten, 0, 0
    for token in session.follow(new_tokens):
        if token == language.eos_id:
            break
        ids.append(token)
        text = decode(ids)
        if not text.endswith("\ufffd"):  # a broken character may be completed by the next token
            yield text[written:]
            written, certain = len(text), len(ids)
    session.unwritten = ids[certain:]
    if not hold:
        yield decode(ids)[written:]


if __name__ == "__main__":
    guarded(main)
