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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from chronomoe.halflife.prompts import Prompt, read_prompts
from chronomoe.halflife.recording import (
    Interruptions,
    Recording,
    load_responses,
    record,
    recorded,
    save_responses,
)
from chronomoe.halflife.settings import VALIDATION, HalflifeSettings, session_settings
from chronomoe.halflife.subject import Subject, passages
from chronomoe.session.calibration import Calibration, calibrate, load_calibration
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
    return [
        Given(prompt=prompt, ids=ids, offtopic=cuts[(number + 1) % len(cuts)])
        for number, (prompt, ids) in enumerate(zip(prompts, cuts, strict=True))
    ]


def calibration_of(model: Readable, subject: Subject, path: Path) -> Calibration:
    """Made once, and read back."""
    if path.is_file():
        found = load_calibration(path)
        found.check_model(model)
        return found
    found = calibrate(model, subject.frame_ids, least_tokens=min(len(subject.frame_ids), 50_000))
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
    return found


def record_arm(arm: str, subject: Subject, settings: HalflifeSettings, folder: Path) -> list[Recording]:
    """Every text of an arm; those in the folder are read, the others recorded."""
    model = subject.untrained() if arm == UNTRAINED else subject.model
    calibration = calibration_of(model, subject, folder / f"calibration{'_untrained' if arm == UNTRAINED else ''}.pt")
    texts = human_texts(subject, settings) if arm == HUMAN else own_texts(subject, settings)
    found = []
    bar = tqdm(texts, desc=f"{subject.name}, {arm}", unit="text", disable=None)
    with neutral(model) if arm == OFF else as_it_is():
        for given, seed, recited in bar:
            found.append(record_text(arm, model, calibration, subject, settings, folder / arm, given, seed, recited))
    return found


def own_texts(subject: Subject, settings: HalflifeSettings) -> list[tuple[Given, int, None]]:
    given = given_prompts(subject, settings)
    return [(one, settings.seed + number, None) for one in given for number in range(settings.seeds)]


def human_texts(subject: Subject, settings: HalflifeSettings) -> list[tuple[Given, int, list[int]]]:
    """As many passages as prompts, each long enough for every chunk; no sampling, so one seed."""
    count = len(given_prompts(subject, settings))
    begin, length = settings.prompt_tokens, settings.prompt_tokens + settings.chunks * settings.chunk_size
    texts = passages(subject, length, count)
    prompts = [Prompt(f"human_{number:02}", HUMAN, "") for number in range(count)]
    return [
        (Given(prompt=prompt, ids=text[:begin], offtopic=[]), settings.seed, text[begin:])
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def record_text(
    arm: str,
    model: Readable,
    calibration: Calibration,
    subject: Subject,
    settings: HalflifeSettings,
    folder: Path,
    given: Given,
    seed: int,
    recited: list[int] | None,
) -> Recording:
    eos_id = None if recited is not None else subject.language.eos_id
    own = session_settings(settings, seed, eos_id)
    path = folder / f"{given.prompt.id}-{seed}.pt"
    responses_path = path.with_suffix(".responses.pt")
    cuts = interruptions(subject, settings, given) if arm == REAL and settings.perturb else None
    telemetry = recorded(path, own, calibration)
    responses = load_responses(responses_path)
    if telemetry is None or (cuts is not None and not responses_path.is_file()):
        session = Session(model, calibration, own)
        telemetry, responses = record(session, given.ids, settings.chunks, cuts, recited)
        folder.mkdir(parents=True, exist_ok=True)
        if cuts is not None:
            save_responses(responses, responses_path)
        telemetry.write(path)
    return Recording(
        prompt=given.prompt.id, genre=given.prompt.genre, seed=seed, telemetry=telemetry, responses=responses
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


@contextmanager
def as_it_is() -> Iterator[None]:
    yield
