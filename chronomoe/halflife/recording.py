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

from chronomoe.data.cache import fingerprint
from chronomoe.session.calibration import Calibration
from chronomoe.session.perturbation import Phrases, arm_ids, respond
from chronomoe.session.pressures import FAST_INSTABILITY, NEGATIVE_PRESSURE
from chronomoe.session.reading import Readable
from chronomoe.session.session import COMPLETED, Session
from chronomoe.session.settings import SessionSettings
from chronomoe.session.telemetry import Telemetry, read_telemetry
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors

FOLLOWING = ("P_mid", "P_net", "degenerate")
"""What is kept of the chunks behind an interruption."""
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
    """A row an interruption: at, arm, dose, work, inserted, and FOLLOWING of the chunks that followed."""
    text: str
    """Hash of the prompt as text, which is the same to every tokenizer."""

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
    """`given`: all tokens of somebody else's text, in the place of the model's own. Everything fits: `check_room`."""
    size = session.settings.chunk_tokens
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


def check_room(
    who: str, prompt_tokens: int, chunks: int, chunk_size: int, longest: float, cuts: Interruptions | None
) -> None:
    """Before anything is recorded. Raises InputError for a text that exceeds the model's longest."""
    if prompt_tokens + chunks * chunk_size > longest:
        raise InputError(
            f"{who}: {prompt_tokens} tokens of a prompt and {chunks} chunks of {chunk_size} exceed the model's longest "
            f"text of {longest}: lower chunks or chunk_size, or shorten the prompt"
        )
    if cuts is None:
        return
    dose = max(dose for _, dose in cuts.variants())
    if prompt_tokens + max(cuts.at) * chunk_size + dose + cuts.num_chunks * chunk_size > longest:
        raise InputError(
            f"{who}: an interruption after chunk {max(cuts.at)} exceeds the model's longest text of {longest}: lower "
            "perturb_at, doses or response_chunks"
        )
    if "offtopic" in cuts.arms and len(cuts.phrases.offtopic) < dose:
        raise InputError(
            f"{who}: perturb=offtopic inserts the next prompt, which has {len(cuts.phrases.offtopic)} tokens and not "
            f"doses={dose}: lower doses, or use longer prompts"
        )


def interrupt(session: Session, at: int, cuts: Interruptions) -> list[dict[str, Any]]:
    """Leaves the session where it was."""
    moment, rows = session.snapshot(), []
    vocab_size = session.model.settings.vocab_size
    drawn = int(fingerprint([*session.state.ids, session.settings.seed])[:8], 16)  # another one at every moment
    for arm, dose in cuts.variants():
        ids = arm_ids(arm, dose, cuts.phrases, vocab_size, drawn)
        found = respond(session, moment, ids, num_chunks=cuts.num_chunks)
        following = {name: [getattr(chunk, name) for chunk in found.chunks] for name in FOLLOWING}
        rows.append({"at": at, "arm": arm, "dose": dose, "work": found.work, "inserted": found.inserted, **following})
    session.restore(moment)
    return rows


def manifest_of(
    model: Readable,
    calibration: Calibration,
    settings: SessionSettings,
    prompt_ids: Sequence[int],
    chunks: int,
    cuts: Interruptions | None,
    given: Sequence[int] | None,
) -> dict[str, Any]:
    """What a recording depends on, as plain values."""
    field = [buffer.double().tolist() for buffer in (model.expert_bias_LE, model.log_temperature_LE)]
    return {
        **asdict(settings),
        "model or calibration": calibration.digest,
        "field": fingerprint(field),
        "prompt": fingerprint(list(prompt_ids)),
        "chunks": chunks,
        "text": None if given is None else fingerprint(list(given)),
        "interruptions": None if cuts is None else fingerprint(plain_cuts(cuts)),
    }


def plain_cuts(cuts: Interruptions) -> list[Any]:
    phrases = [list(of) for of in (cuts.phrases.neutral, cuts.phrases.offtopic, cuts.phrases.blank)]
    return [cuts.variants(), sorted(cuts.at), cuts.num_chunks, phrases]


def save_recording(telemetry: Telemetry, responses: list[dict[str, Any]], manifest: dict[str, Any], path: Path) -> None:
    """The text last, by which a recording is known to be whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if manifest["interruptions"] is not None:
        save_tensors({"responses": responses}, responses_path(path))
    telemetry.about["manifest"] = manifest
    telemetry.write(path)


def responses_path(path: Path) -> Path:
    return path.with_suffix(".responses.pt")


def load_recording(path: Path, manifest: dict[str, Any]) -> tuple[Telemetry, list[dict[str, Any]]] | None:
    """What was recorded before; None if nothing, or without the interruptions that are asked for now.

    Raises InputError where it was recorded of something else, naming what.
    """
    if not path.is_file():
        return None
    telemetry = read_telemetry(path)
    before = telemetry.about.get("manifest", {})
    other = next((name for name in manifest if name != "interruptions" and before.get(name) != manifest[name]), None)
    if other is None and None not in (manifest["interruptions"], before["interruptions"]):
        other = None if before["interruptions"] == manifest["interruptions"] else "interruptions"
    if other is not None:
        raise InputError(
            f"{path} was recorded with another {other}: choose another folder with output=…, or the settings it was "
            "recorded with"
        )
    if manifest["interruptions"] is None:
        return telemetry, []
    if before["interruptions"] is None or not responses_path(path).is_file():
        return None
    return telemetry, list(torch.load(responses_path(path), weights_only=True)["responses"])
