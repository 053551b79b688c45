"""One text of one prompt, from the first chunk to the last, and what became of it: the unit that is done or not done.

A text is recorded once: its telemetry is written whole when it has ended, so the same command skips what is there. At
the pauses where it is to be interrupted it is gone on from one saved moment in several ways, and then as if nothing had
happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from chronomoe.session.calibration import Calibration
from chronomoe.session.perturbation import Phrases, arm_ids, respond
from chronomoe.session.pressures import FAST_INSTABILITY, NEGATIVE_PRESSURE
from chronomoe.session.session import COMPLETED, Session
from chronomoe.session.settings import SessionSettings
from chronomoe.session.telemetry import Telemetry, read_telemetry
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors

STOPS = {COMPLETED: "eos", FAST_INSTABILITY: "rule1", NEGATIVE_PRESSURE: "rule2"}


@dataclass(frozen=True, kw_only=True)
class Interruptions:
    """At which pauses a text is interrupted, and how."""

    arms: Sequence[str]
    doses: Sequence[int]
    at: Sequence[int]
    """Chunks that have ended."""
    num_chunks: int
    """Followed after an interruption."""
    phrases: Phrases

    def variants(self) -> list[tuple[str, int]]:
        """(arm, dose); `none`, which all are held against, first."""
        others = [(arm, dose) for arm in self.arms if arm != "none" for dose in self.doses]
        return [("none", 0), *others]


@dataclass(frozen=True, kw_only=True)
class Recording:
    prompt: str
    genre: str
    seed: int
    telemetry: Telemetry
    responses: list[dict[str, Any]]
    """A row an interruption: at, arm, dose, work, inserted, P_mid and P_net of the chunks that followed."""

    @property
    def stop(self) -> str:
        return STOPS.get(self.telemetry.about["ended"] or "", "K")


def record(
    session: Session,
    prompt_ids: Sequence[int],
    chunks: int,
    cuts: Interruptions | None = None,
    given: Sequence[int] | None = None,
) -> tuple[Telemetry, list[dict[str, Any]]]:
    """`given`: all tokens of somebody else's text, in the place of the model's own.

    Raises InputError for a prompt that does not fit.
    """
    size, longest = session.settings.chunk_tokens, session.model.settings.longest_text
    if len(prompt_ids) + chunks * size > longest:
        raise InputError(
            f"{len(prompt_ids)} tokens of a prompt and {chunks} chunks of {size} exceed the model's longest text of "
            f"{longest}: lower chunks or chunk_size, or shorten the prompt"
        )
    session.begin(prompt_ids)
    responses: list[dict[str, Any]] = []
    for number in range(1, chunks + 1):
        forced = None if given is None else given[(number - 1) * size : number * size]
        if session.next_chunk(forced) is None or session.state.ended is not None:
            break
        if cuts is not None and number in cuts.at:
            responses += interrupt(session, number, cuts)
        session.command("continue")
    return session.telemetry(), responses


def interrupt(session: Session, at: int, cuts: Interruptions) -> list[dict[str, Any]]:
    """Leaves the session where it was."""
    moment, rows = session.snapshot(), []
    longest = max([0, *(dose for _, dose in cuts.variants())]) + cuts.num_chunks * session.settings.chunk_tokens
    if session.room < longest:
        raise InputError(
            f"after chunk {at} no room for an interruption is left in the model's longest text: lower perturb_at, "
            "doses or response_chunks"
        )
    vocab_size = session.model.settings.vocab_size
    for arm, dose in cuts.variants():
        ids = arm_ids(arm, dose, cuts.phrases, vocab_size, session.settings.seed)
        found = respond(session, moment, ids, num_chunks=cuts.num_chunks)
        following = {name: [getattr(chunk, name) for chunk in found.chunks] for name in ("P_mid", "P_net")}
        rows.append({"at": at, "arm": arm, "dose": dose, "work": found.work, "inserted": found.inserted, **following})
    session.restore(moment)
    return rows


def save_responses(rows: list[dict[str, Any]], path: Path) -> None:
    save_tensors({"responses": rows}, path)


def load_responses(path: Path) -> list[dict[str, Any]]:
    return list(torch.load(path, weights_only=True)["responses"]) if path.is_file() else []


def recorded(path: Path, settings: SessionSettings, calibration: Calibration) -> Telemetry | None:
    """What was recorded before; None if nothing. Raises InputError where that was with other settings or another
    model."""
    if not path.is_file():
        return None
    telemetry = read_telemetry(path)
    now = asdict(settings)
    other = next((name for name in now if telemetry.about["settings"].get(name) != now[name]), None)
    if other is not None:
        raise InputError(
            f"{path} was recorded with {other}={telemetry.about['settings'].get(other)}: choose another folder with "
            "output=…, or the same settings"
        )
    if telemetry.about["calibration"] != calibration.digest:
        raise InputError(f"{path} was recorded of another model or calibration: choose another folder with output=…")
    return telemetry
