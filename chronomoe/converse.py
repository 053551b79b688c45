"""`python -m chronomoe.converse model=<run|folder|hub name> prompt="…"`: a session at the keyboard.

The model goes on from the prompt, chunk by chunk, and pauses. Text stands on standard output, what was measured on
standard error, so that the text alone can be kept. At a pause:

| you type | what happens |
|---|---|
| `continue`, or nothing | the next chunk |
| `multistep off`, `single` | it goes on by itself until pressure says stop; `multistep` pauses again |
| `reset` | residual intent and history are forgotten, the text is not |
| `end`, `stop`, Ctrl-D | the end |
| anything else | it is inserted into the text, and what it cost is said |
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from chronomoe.entry import guarded, read_arguments
from chronomoe.halflife.recording import check_room
from chronomoe.halflife.settings import SubjectSettings
from chronomoe.halflife.subject import Subject, load_subject
from chronomoe.session.calibration import calibrate
from chronomoe.session.chunk import Chunk
from chronomoe.session.clock_heads import LEAST_UPDATES
from chronomoe.session.commands import Command
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.settings import InputError, setting


@dataclass(kw_only=True)
class ConverseSettings(SubjectSettings):
    model: str = setting()
    """A run's directory, a folder of a Hugging Face model, or a hub name."""
    prompt: str = setting()
    """The text to go on from; at least 32 tokens, which the clocks need."""
    chunk_size: int = setting(20, low=2)
    """Tokens of a chunk."""
    temperature: float = setting(0.8, low=0.0)
    """0 always takes the most likely token."""
    top_p: float = setting(0.95, low=0.0, high=1.0)
    """Sample from the smallest set of tokens with this much probability."""
    seed: int = setting(42, low=0)
    """Same seed, same text."""
    mode: str = setting("multistep", choices=["multistep", "single_turn"])
    """Pause after every chunk, or only where pressure says so."""
    telemetry: str | None = setting(None)
    """A file for everything that was measured."""


def main() -> None:
    settings = read_arguments(ConverseSettings, sys.argv[1:])
    if settings.telemetry is not None and not Path(settings.telemetry).absolute().parent.is_dir():
        raise InputError(f"telemetry={settings.telemetry}: give a file in a folder that exists")
    subject = load_subject(settings.model, settings)
    session = open_session(subject, settings)
    try:
        talk(session, subject, settings)
    finally:
        print()
        if settings.telemetry is not None:
            session.telemetry().write(Path(settings.telemetry))


def talk(session: Session, subject: Subject, settings: ConverseSettings) -> None:
    print(settings.prompt, end="", flush=True)
    while session.state.ended is None:
        shown = len(session.state.ids)
        chunk = session.next_chunk()
        print(subject.language.tokenizer.decode(session.state.ids[shown:]), end="", flush=True)
        if chunk is None:
            break
        print(measured(chunk), file=sys.stderr)
        while session.state.paused:
            answer(session, subject, read_line())
        if session.room < settings.chunk_size:
            print("[the model's longest text is full]", file=sys.stderr)
            return
    print(f"[{session.state.ended}]", file=sys.stderr)


def open_session(subject: Subject, settings: ConverseSettings) -> Session:
    own = SessionSettings(
        chunk_tokens=settings.chunk_size,
        mode=settings.mode,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        eos_id=subject.language.eos_id,
    )
    ids = subject.language.tokenizer.encode(settings.prompt).ids
    if len(ids) < LEAST_UPDATES:
        raise InputError(f"prompt has {len(ids)} tokens and the clocks need {LEAST_UPDATES}: write a longer one")
    check_room("prompt", len(ids), 1, settings.chunk_size, subject.model.settings.longest_text, None)
    calibration = calibrate(subject.model, subject.frame_ids, least_tokens=len(subject.frame_ids))
    session = Session(subject.model, calibration, own)
    session.begin(ids)
    return session


def read_line() -> str:
    """What is typed; the end of input is the command to end."""
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else "end"


def answer(session: Session, subject: Subject, line: str) -> None:
    said = session.command(line.strip() or "continue")
    if said is Command.PERTURBATION:
        try:
            work = session.insert(subject.language.tokenizer.encode(line).ids)
        except InputError as refused:  # too long a text: nothing is lost, and something else may be said
            print(f"[{refused}]", file=sys.stderr)
            return
        print(line, end="", flush=True)
        print(f"[inserted: {work:.1f} nats]", file=sys.stderr)
    elif said in (Command.MULTISTEP_OFF, Command.MULTISTEP_ON, Command.RESET):
        print(f"[mode {session.state.mode}, residual intent {session.state.rho:.2f}]", file=sys.stderr)
        session.command("continue")


def measured(chunk: Chunk) -> str:
    return (
        f"[chunk {chunk.index}: P_net {chunk.P_net:+.3f} (fast {chunk.P_fast:+.3f}, mid {chunk.P_mid:+.3f}, slow "
        f"{chunk.P_slow:+.3f}), routing entropy {chunk.mean['Hn']:.3f}, rho {chunk.rho:.2f}"
        f"{', repeats itself' if chunk.degenerate else ''}{f': {chunk.pause_reason}' if chunk.pause_reason else ''}]"
    )


if __name__ == "__main__":
    guarded(main)
