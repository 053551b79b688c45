"""Everything that is said about one model, as plain values: a part of `halflife.json`.

| key | holds |
|---|---|
| about | the model and how it was measured |
| signals | percentiles 1, 50, 99 of every measured signal over the chunks of the real arm; `signals_absent` |
| attainable, variance_shares, frozen_inputs | what range P_mid can have, what moves it within a text, what is left without an input |
| arms | per arm: texts, how they ended, degenerate ones, the decay of P_mid in its own range, entropy start to end, in the real and the human arm also of P_net, P_slow and Hn |
| nulls | slope of P_mid among shuffled chunks; conclusions of reversed ones, and of inputs that stand still |
| boundary | does P_mid change where a paragraph ends |
| perturbation | responses.py |
| series | a row a text: its chunks, column by column |
| conclusion | one line |
A number that does not exist is null and has its reason beside it, or none where the key says why.
"""  # noqa: E501 (rows of a table)

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from chronomoe.data.tokenizer import LanguageTokenizer
from chronomoe.decay.arm import Arm, Shape, measure_arm
from chronomoe.decay.attainable import Attainable, attainable_range, freeze, variance_shares
from chronomoe.decay.boundary import boundary_effect
from chronomoe.decay.documented import ols_slope
from chronomoe.decay.entropy import evolution
from chronomoe.decay.nulls import against_shuffles, reversed_in_time
from chronomoe.decay.series import FEWEST_CHUNKS, Series, prompt_indices
from chronomoe.decay.verdict import conclusion
from chronomoe.halflife.arms import HUMAN, REAL
from chronomoe.halflife.pressure import chunk_numbers, constant_arm, inputs_of, pressure, sound, terms, within_texts
from chronomoe.halflife.quantities import PRIMARY, QUANTITIES, series_of
from chronomoe.halflife.recording import Recording
from chronomoe.halflife.responses import responses, sustaining_dose
from chronomoe.settings import RunFailed

FOLLOWED = tuple(QUANTITIES)
"""Quantities of the real and the human arm whose decay is measured in full."""
COLUMNS = ("P_fast", "P_mid", "P_slow", "w_fast", "w_mid", "w_slow", "P_net", "rho", "dC", "H_use", "information")
MEANS = ("Hn", "Hn_effective", "m_r", "m", "d_meso", "d_macro", "q", "J", "c_f", "c_s", "surprisal")
BASELINE_CHUNKS = 5


def findings(
    recorded: Mapping[str, Sequence[Recording]], language: LanguageTokenizer, *, seed: int, followed: int
) -> dict[str, Any]:
    """`recorded`: arm -> its texts, the real one among them; `followed`: chunks behind an interruption.

    Raises RunFailed where no text has a chunk to speak of.
    """
    real = [recording for recording in recorded[REAL] if recording.telemetry.chunks]
    inputs = inputs_of(real)
    if not len(inputs["m"]):
        ended = sum(not recording.telemetry.chunks for recording in recorded[REAL])
        raise RunFailed(
            f"nothing is left to measure: {ended} of {len(recorded[REAL])} texts ended within their first chunk, the "
            "others repeat themselves from theirs; use eos=ban, another temperature, or a model that was trained longer"
        )
    rng = np.random.default_rng(seed)
    arm, reach = series_of(real, PRIMARY), reach_of(real)
    measured = {name: describe_arm(name, texts, rng) for name, texts in recorded.items()}
    boundary = boundary_effect(
        [s.observed_K for s in arm],
        [np.array([breaks(language, chunk.ids) for chunk in sound(recording)], dtype=bool) for recording in real],
        rng,
    )
    cells = responses(real, followed)
    doses = {c.arm for c in cells}
    return plain({
        "conclusion": measured[REAL]["conclusion"],
        "signals": signals(real),
        "signals_absent": real[0].telemetry.about["signals_absent"],
        "attainable": reach,
        "variance_shares": shares(real),
        "frozen_inputs": freeze(pressure, inputs, chunk_numbers(real)),
        "arms": measured,
        "nulls": nulls(arm, real, reach, rng),
        "boundary": boundary,
        "perturbation": {
            "cells": cells,
            "sustaining_dose": {one: sustaining_dose(cells, one, reach.start / 2) for one in sorted(doses)},
        },
        "series": [
            row(name, recording, language if name == REAL else None)
            for name, texts in recorded.items()
            for recording in texts
        ],
    })  # fmt: skip


def reach_of(texts: Sequence[Recording]) -> Attainable:
    """What P_mid can be in these texts, from their own inputs."""
    arm = series_of(texts, PRIMARY)
    start = float(np.mean([s.observed_K[:BASELINE_CHUNKS].mean() for s in arm if len(s.observed_K)]))
    return attainable_range(pressure, inputs_of(texts), start)


def shares(texts: Sequence[Recording]) -> dict[str, float] | None:
    """Of what moves within texts: which of them press more throughout is another question."""
    inputs = inputs_of(texts)
    moved = within_texts({**terms(inputs), PRIMARY: pressure(inputs)}, texts)
    whole = moved.pop(PRIMARY)
    return variance_shares(moved, whole)


def describe_arm(name: str, texts: Sequence[Recording], rng: np.random.Generator) -> dict[str, Any]:
    """The decay of P_mid, within the range that the arm's own inputs allow, and the course of entropy; of the real and
    the human arm also of the other quantities."""
    with_chunks = [recording for recording in texts if recording.telemetry.chunks]
    facts: dict[str, Any] = {
        "texts": len(texts),
        "prompts": len({recording.prompt for recording in texts}),
        "stops": Counter(recording.stop for recording in texts),
        "without_chunk": sum(not recording.telemetry.chunks for recording in texts),
        "degenerate": sum(any(chunk.degenerate for chunk in recording.telemetry.chunks) for recording in texts),
    }
    if not any(sound(recording) for recording in with_chunks):
        return facts | {"conclusion": "not measurable: no text has a chunk that is not degenerate"}
    arm, reach = series_of(with_chunks, PRIMARY), reach_of(with_chunks)
    decay = measure_arm(arm, reach.low, reach.high, rng)
    entropy = series_of(with_chunks, "Hn")
    kept = [series for series in entropy if len(series.observed_K) >= FEWEST_CHUNKS]
    facts |= {
        "attainable": reach,
        "conclusion": conclusion(decay, reach),
        PRIMARY: describe_decay(decay, each=name == REAL),
    }
    facts["entropy"] = evolution([s.observed_K for s in kept], prompt_indices(kept)) if kept else None
    if name in (REAL, HUMAN):
        for quantity in FOLLOWED[1:]:
            other = series_of(with_chunks, quantity)
            values = np.concatenate([series.observed_K for series in other])
            facts[quantity] = describe_decay(measure_arm(other, values.min(), values.max(), rng), each=False)
    return facts


def describe_decay(arm: Arm, *, each: bool) -> dict[str, Any]:
    """`each`: with the shape of every series."""
    cliffs = [cliff for cliff in arm.cliffs if cliff is not None]
    found: dict[str, Any] = {
        "phi": arm.phi,
        "noise": arm.noise,
        "shortage": arm.shortage,
        "verdicts": arm.verdicts,
        "pooled": None if arm.pooled is None else describe_shape(arm.pooled),
        "effect": arm.effect,
        "cliffs": {"tested": len(cliffs), "found": sum(cliff.found for cliff in cliffs)},
        "survival": None,
        "survival_refused": arm.refusal,
        "documented": {
            "verdicts": Counter(decay.verdict for decay, _ in arm.documented),
            "half_life_reached": sum(half.status == "reached" for _, half in arm.documented),
        },
    }
    if arm.survival is not None:
        half, stopped = int(arm.survival.table.half_BT.sum()), int(arm.survival.table.stopped_BT.sum())
        found["survival"] = {
            "events": half,
            "stopped": stopped,
            "censored": len(arm.series) - half - stopped,
            "median": arm.survival.median,
            "median_band": arm.survival.median_band,
            "restricted_mean": arm.survival.restricted_mean,
            "horizon": arm.survival.horizon,
            "survival_T": arm.survival.survival_T,
            "low_T": arm.survival.low_T,
            "high_T": arm.survival.high_T,
            "half_incidence_T": arm.survival.half_incidence_T,
            "stopped_incidence_T": arm.survival.stopped_incidence_T,
        }
    if each:
        found["each"] = [
            {
                "prompt": series.prompt,
                "seed": series.seed,
                "shape": None if shape is None else describe_shape(shape),
                "cliff": cliff,
                "documented": decay,
                "half_life_documented": half,
            }
            for series, shape, cliff, (decay, half) in zip(
                arm.series, arm.shapes, arm.cliffs, arm.documented, strict=True
            )
        ]
    return found


def describe_shape(shape: Shape) -> dict[str, Any]:
    return {
        "verdict": shape.verdict,
        "fitted": shape.fitted,
        "intervals": shape.known,
        "fault": shape.fault,
        "aicc": shape.aicc_F,
        "weights": shape.weight_F,
        "half_life": {"tau": shape.by_tau, "threshold": shape.by_threshold, "midpoint": shape.by_midpoint},
    }


def nulls(
    arm: Sequence[Series], real: Sequence[Recording], reach: Attainable, rng: np.random.Generator
) -> dict[str, Any]:
    constant = constant_arm(arm, real)
    frozen = reach._replace(frozen=[*inputs_of(real)])
    backwards = reversed_in_time(arm)
    long = [series for series in arm if len(series.observed_K) >= FEWEST_CHUNKS]
    return {
        "shuffled": against_shuffles(long, mean_slope, rng) if long else None,
        "reversed": conclusion(measure_arm(backwards, reach.low, reach.high, rng), reach),
        "constant": conclusion(measure_arm(constant, reach.low, reach.high, rng), frozen),
    }


def mean_slope(arm: Sequence[Series]) -> float:
    """Of least squares, per chunk, averaged over texts."""
    return float(np.mean([ols_slope(series.observed_K) for series in arm]))


def signals(real: Sequence[Recording]) -> dict[str, dict[str, float]]:
    chunks = [chunk for recording in real for chunk in sound(recording)]
    values = {name: np.array([chunk.mean[name] for chunk in chunks]) for name in chunks[0].mean}
    return {
        name: dict(zip(("p1", "p50", "p99"), map(float, np.percentile(value_N, [1, 50, 99])), strict=True))
        for name, value_N in values.items()
    }


def breaks(language: LanguageTokenizer, ids: Sequence[int]) -> bool:
    """Whether a paragraph ends in these tokens."""
    return "\n\n" in language.tokenizer.decode(list(ids))


def row(arm: str, recording: Recording, language: LanguageTokenizer | None) -> dict[str, Any]:
    """A text; with what it says, where a tokenizer is given."""
    chunks = recording.telemetry.chunks
    columns: dict[str, Any] = {name: [getattr(chunk, name) for chunk in chunks] for name in COLUMNS}
    columns |= {name: [chunk.mean[name] for chunk in chunks] for name in MEANS}
    columns |= {"H_L": [chunk.H_L for chunk in chunks], "degenerate": [chunk.degenerate for chunk in chunks]}
    columns["pause_reason"] = [chunk.pause_reason for chunk in chunks]
    if language is not None:
        columns["text"] = [language.tokenizer.decode(list(chunk.ids)) for chunk in chunks]
    facts = {"arm": arm, "prompt": recording.prompt, "genre": recording.genre, "seed": recording.seed}
    return facts | {"stop": recording.stop, "tokens": [len(chunk.ids) for chunk in chunks], "chunks": columns}


def plain(value: Any) -> Any:
    """For JSON: dicts, lists, strings and numbers; what is not finite is None."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
