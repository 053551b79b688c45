"""What is measured: a model with its tokenizer, a text of the usual kind, and the models that are to show nothing.

A run is measured on its own held-out text; any other model needs `calibration=<file>`. The text is cut in two: what the
frame of measurement is fixed by, and what stands behind it, which gives human text and `validation` prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from chronomoe.data.tokenizer import LanguageTokenizer, load_tokenizer
from chronomoe.halflife.settings import SubjectSettings
from chronomoe.model.checks import check_finite
from chronomoe.session.reading import Readable, check_readable
from chronomoe.settings import InputError

TWIN_SEED = 0
"""Of a pretrained model's untrained twin; a run's has the run's own."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    name: str
    """Of its folder and in every table."""
    model: Readable
    untrained: Callable[[], Readable]
    """A twin with fresh weights and no field."""
    language: LanguageTokenizer
    frame_ids: list[int]
    """Of the text that the frame of measurement is fixed by."""
    held_ids: NDArray[np.int64]
    """Of the text behind it."""
    about: dict[str, Any]

    @property
    def steered(self) -> bool:
        """Whether a field acts that could be switched off."""
        model = self.model
        return bool(model.expert_bias_LE.any() or model.log_temperature_LE.any())


def is_run(source: str) -> bool:
    return (Path(source).expanduser() / "checkpoints").is_dir()


def load_subject(source: str, settings: SubjectSettings) -> Subject:
    """Raises InputError for what is no model, or one that no session can measure."""
    return (from_run if is_run(source) else from_pretrained)(source, settings)


def from_run(source: str, settings: SubjectSettings) -> Subject:
    from chronomoe.chrono.checks import check_decoding
    from chronomoe.evaluate import load_checkpoint, untrained_twin

    directory = Path(source).expanduser()
    model, config = load_checkpoint(directory, "checkpoint", settings.checkpoint)
    check_decoding(config.chrono)
    check_finite(model, f"model={source}")
    check_readable(model)
    language = load_tokenizer(str(directory / "tokenizer"))
    if settings.calibration is None:
        from chronomoe.data.packing import prepare_corpus

        corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True)
        ids = np.asarray(corpus.val_tokens, dtype=np.int64)
    else:
        ids = read_text(settings.calibration, language)
    frame_ids, held_ids = cut(ids, settings, source)
    return Subject(
        name=directory.resolve().name,
        model=model,
        untrained=partial(untrained_twin, config),
        language=language,
        frame_ids=frame_ids,
        held_ids=held_ids,
        about={"source": source, "kind": "run", "checkpoint": settings.checkpoint, **about(model)},
    )


def from_pretrained(source: str, settings: SubjectSettings) -> Subject:
    from chronomoe.pretrained.loading import load_steered

    if settings.calibration is None:
        raise InputError(
            f"model={source} is no directory of a run: check the path, or give calibration=<a text of the usual kind> "
            "for another model"
        )
    model = load_steered(
        source,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantisation=settings.quantisation,
    )
    check_readable(model)
    language = load_tokenizer(source)
    frame_ids, held_ids = cut(read_text(settings.calibration, language), settings, source)
    return Subject(
        name=Path(source).name,
        model=model,
        untrained=partial(untrained_steered, model),
        language=language,
        frame_ids=frame_ids,
        held_ids=held_ids,
        about={"source": source, "kind": "pretrained", "quantisation": settings.quantisation, **about(model)},
    )


def untrained_steered(model: Any) -> Readable:
    """Of the same class, configuration and dtype, with fresh weights and a neutral field, on one device."""
    from chronomoe.pretrained.steered import SteeredModel

    torch.manual_seed(TWIN_SEED)
    base = type(model.base)._from_config(model.base.config, dtype=model.base.dtype)
    return SteeredModel(base.to(model.device).eval())


def about(model: Any) -> dict[str, Any]:
    settings, router = model.settings, model.router_settings
    size = sum(parameter.numel() for parameter in model.parameters())
    facts = {"num_moe_layers": settings.num_moe_layers, "num_experts": settings.num_experts, "top_k": router.top_k}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {"gate": router.gate, **facts, "parameters": size, "dtype": dtype, "torch": torch.__version__}


def read_text(path: str, language: LanguageTokenizer) -> NDArray[np.int64]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"calibration={path}: there is no such file; give a text of the usual kind")
    return np.array(language.tokenizer.encode(file.read_text("utf-8")).ids, dtype=np.int64)


def cut(ids: NDArray[np.int64], settings: SubjectSettings, source: str) -> tuple[list[int], NDArray[np.int64]]:
    most = settings.calibration_tokens
    if len(ids) < most:
        raise InputError(
            f"the calibration text of model={source} has {len(ids):,} tokens and calibration_tokens={most:,} are asked "
            "for: give a longer one, or lower calibration_tokens"
        )
    return ids[:most].tolist(), ids[most:]


def passages(subject: Subject, length: int, count: int) -> list[list[int]]:
    """As many passages of the held text, evenly spread and without overlap. Raises InputError where they do not fit."""
    room = len(subject.held_ids)
    if room < length * count:
        raise InputError(
            f"{count} passages of {length} tokens do not fit into the {room:,} tokens behind calibration_tokens of "
            f"model={subject.about['source']}: lower num_prompts or chunks, or give a longer calibration text"
        )
    step = room // count
    return [subject.held_ids[at * step : at * step + length].tolist() for at in range(count)]
