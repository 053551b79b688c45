"""The arms of one model: its own text, and what must show nothing beside it.

| arm | model | text |
|---|---|---|
| real | as it was loaded | its own, from every prompt, seed by seed |
| controller_off | without its field; only where it has one | its own, from the same prompts and random numbers |
| untrained | same architecture, fresh weights | its own, from the same prompts |
| human | as it was loaded | held-out text of somebody else, read as if it had been written |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from chronomoe.data.cache import fingerprint
from chronomoe.halflife.prompts import Prompt, read_prompts
from chronomoe.halflife.recording import (
    Interruptions,
    Recording,
    check_room,
    load_recording,
    manifest_of,
    record,
    save_recording,
)
from chronomoe.halflife.settings import VALIDATION, HalflifeSettings, session_settings
from chronomoe.halflife.subject import Subject, passages
from chronomoe.session.calibration import Calibration, calibrate, load_calibration, text_hash
from chronomoe.session.clock_heads import LEAST_UPDATES
from chronomoe.session.perturbation import Phrases
from chronomoe.session.reading import Readable
from chronomoe.session.session import Session
from chronomoe.settings import InputError

REAL, OFF, UNTRAINED, HUMAN = "real", "controller_off", "untrained", "human"


@dataclass(frozen=True, kw_only=True)
class Given:
    """A prompt as the subject reads it."""

    prompt: Prompt
    ids: list[int]
    offtopic: list[int]
    """Of the prompt after it."""


def given_prompts(subject: Subject, settings: HalflifeSettings) -> list[Given]:
    """Raises InputError for a prompt too short for the clocks, naming it."""
    if settings.prompts == VALIDATION:
        cuts = passages(subject, settings.prompt_tokens, settings.num_prompts)
        prompts = [Prompt(f"passage_{number:02}", VALIDATION, "") for number in range(len(cuts))]
    else:
        prompts = read_prompts(settings.prompts, settings.num_prompts)
        cuts = [subject.language.tokenizer.encode(prompt.text).ids for prompt in prompts]
    for prompt, ids in zip(prompts, cuts, strict=True):
        if len(ids) < LEAST_UPDATES + 1:
            raise InputError(
                f"prompts: {prompt.id} has {len(ids)} tokens and the clocks need {LEAST_UPDATES + 1}: lengthen it"
            )
    if "offtopic" in settings.perturb and len(prompts) == 1:
        raise InputError("perturb=offtopic inserts another prompt, and there is one: raise num_prompts")
    return [
        Given(prompt=prompt, ids=ids, offtopic=cuts[(number + 1) % len(cuts)])
        for number, (prompt, ids) in enumerate(zip(prompts, cuts, strict=True))
    ]


def calibration_of(model: Readable, subject: Subject, path: Path) -> Calibration:
    """Made once, and read back. Raises InputError where it was made of another text."""
    if not path.is_file():
        found = calibrate(model, subject.frame_ids, least_tokens=len(subject.frame_ids))
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)
        return found
    found = load_calibration(path)
    found.check_model(model)
    if found.text != text_hash(subject.frame_ids):
        raise InputError(
            f"{path} is of another calibration text: choose another folder with output=…, or the same calibration and "
            "calibration_tokens"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Text:
    """One to be recorded."""

    given: Given
    seed: int
    recited: list[int] | None
    """Somebody else's tokens in the place of the model's own."""
    cuts: Interruptions | None


def plan(subject: Subject, settings: HalflifeSettings) -> dict[str, list[Text]]:
    """Arm -> its texts. Raises InputError, before anything is recorded, for whatever does not fit."""
    arms = [REAL]
    if settings.nulls:
        arms += [*([OFF] if subject.steered else []), UNTRAINED, HUMAN]
    given = given_prompts(subject, settings)
    planned = {}
    for arm in arms:
        texts = human_texts(subject, settings, len(given)) if arm == HUMAN else own_texts(subject, settings, given, arm)
        for text in texts:
            check_room(
                text.given.prompt.id,
                len(text.given.ids),
                settings.chunks,
                settings.chunk_size,
                subject.model.settings.longest_text,
                text.cuts,
            )
        planned[arm] = texts
    return planned


def own_texts(subject: Subject, settings: HalflifeSettings, given: list[Given], arm: str) -> list[Text]:
    interrupted = arm == REAL and settings.perturb
    return [
        Text(
            given=one,
            seed=settings.seed + number,
            recited=None,
            cuts=interruptions(subject, settings, one) if interrupted else None,
        )
        for one in given
        for number in range(settings.seeds)
    ]


def human_texts(subject: Subject, settings: HalflifeSettings, count: int) -> list[Text]:
    """As many passages as prompts, each long enough for every chunk; no sampling, so one seed. With `validation` they
    are what followed the prompts."""
    begin, length = settings.prompt_tokens, settings.prompt_tokens + settings.chunks * settings.chunk_size
    texts = passages(subject, length, count)
    name = "passage" if settings.prompts == VALIDATION else HUMAN
    prompts = [Prompt(f"{name}_{number:02}", HUMAN, "") for number in range(count)]
    return [
        Text(
            given=Given(prompt=prompt, ids=text[:begin], offtopic=[]),
            seed=settings.seed,
            recited=text[begin:],
            cuts=None,
        )
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def record_arm(
    arm: str, texts: list[Text], subject: Subject, settings: HalflifeSettings, folder: Path
) -> list[Recording]:
    """Every text of an arm; those in the folder are read, the others recorded."""
    model = subject.untrained() if arm == UNTRAINED else subject.model
    calibration = calibration_of(model, subject, folder / f"calibration{'_untrained' if arm == UNTRAINED else ''}.pt")
    bar = tqdm(texts, desc=f"{subject.name}, {arm}", unit="text", disable=None)
    with neutral(model) if arm == OFF else nullcontext():
        return [record_text(model, calibration, text, subject, settings, folder / arm) for text in bar]


def record_text(
    model: Readable, calibration: Calibration, text: Text, subject: Subject, settings: HalflifeSettings, folder: Path
) -> Recording:
    given = text.given
    eos_id = None if text.recited is not None else subject.language.eos_id
    own = session_settings(settings, text.seed, eos_id)
    path = folder / f"{given.prompt.id}-{text.seed}.pt"
    manifest = manifest_of(model, calibration, own, given.ids, settings.chunks, text.cuts, text.recited)
    found = load_recording(path, manifest)
    if found is None:
        session = Session(model, calibration, own)
        found = record(session, given.ids, settings.chunks, text.cuts, text.recited)
        save_recording(*found, manifest, path)
    telemetry, responses = found
    return Recording(
        prompt=given.prompt.id,
        genre=given.prompt.genre,
        seed=text.seed,
        telemetry=telemetry,
        responses=responses,
        text=fingerprint(subject.language.tokenizer.decode(given.ids)),
    )


def interruptions(subject: Subject, settings: HalflifeSettings, given: Given) -> Interruptions:
    encode = subject.language.tokenizer.encode
    phrases = Phrases(neutral=encode(" Please continue:").ids, offtopic=given.offtopic, blank=encode("\n").ids)
    return Interruptions(
        arms=settings.perturb,
        doses=settings.doses,
        at=settings.perturb_at,
        num_chunks=settings.response_chunks,
        phrases=phrases,
    )


@contextmanager
def neutral(model: Any) -> Iterator[None]:
    """The model without its field, which it gets back."""
    kept = [buffer.clone() for buffer in (model.expert_bias_LE, model.log_temperature_LE)]
    with torch.no_grad():
        model.expert_bias_LE.zero_()
        model.log_temperature_LE.zero_()
    try:
        yield
    finally:
        with torch.no_grad():
            model.expert_bias_LE.copy_(kept[0])
            model.log_temperature_LE.copy_(kept[1])
