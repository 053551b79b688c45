"""Settings of `python -m chronomoe.halflife`."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.session.constraints import CONSTRAINTS, chosen
from chronomoe.session.perturbation import ARMS
from chronomoe.session.settings import SessionSettings
from chronomoe.settings import InputError, setting

VALIDATION = "validation"


@dataclass(kw_only=True)
class SubjectSettings:
    """How a model is found, and in what frame it is measured."""

    checkpoint: str = setting("best", choices=["best", "last"])
    """Of a run."""
    calibration: str | None = setting(None)
    """A text of the usual kind, disjoint from the prompts, that fixes the frame of measurement; null: a run's held-out
    text."""
    calibration_tokens: int = setting(50_000, low=1_000)
    """Tokens of it that are used; what stands behind them gives human text and `validation` prompts."""
    dtype: str = setting("auto", choices=["auto", "bf16", "fp16", "fp32"])
    """Of a Hugging Face model's weights; auto: as they are saved."""
    device_map: str | None = setting(None)
    """Of a Hugging Face model, such as auto."""
    quantisation: str = setting("none", choices=["none", "int8", "nf4"])
    """Of a Hugging Face model, by bitsandbytes; refused where it would not reach nine tenths of the parameters."""


@dataclass(kw_only=True)
class HalflifeSettings(SubjectSettings):
    model: list[str] = setting([])
    """Directories of runs, folders of Hugging Face models, or hub names; several are compared: model=[a,b]."""
    prompts: str | None = setting(None)
    """A .jsonl file (text, and id and genre if you like, a line), a text file with blank lines between prompts,
    `validation` for passages of a run's own held-out text, or null for the twenty that come with the package."""
    prompt_tokens: int = setting(64, low=32)
    """Tokens of a `validation` prompt, and of human text before its first chunk."""
    num_prompts: int = setting(20, low=1)
    """Prompts used at most."""
    chunks: int = setting(50, low=2)
    """Chunks of a text."""
    chunk_size: int = setting(20, low=2)
    """Tokens of a chunk."""
    seeds: int = setting(3, low=1)
    """Texts of a prompt; one is enough at temperature 0."""
    seed: int = setting(42, low=0)
    """The first sampling seed."""
    temperature: float = setting(1.0, low=0.0)
    """0 always takes the likeliest token. Signals are of temperature 1 in any case."""
    top_p: float = setting(0.95, low=0.0, high=1.0)
    """Sample from the smallest set of tokens with this much probability."""
    eos: str = setting("stop", choices=["stop", "ban"])
    """The end-of-document token ends a text; or it is never drawn."""
    mode: str = setting("measured", choices=["measured", "documented"])
    """What the pressures are fed: every signal as it is measured, or the first prototype's constants and faults."""
    constraints: list[str] = setting(list(CONSTRAINTS))
    """Terms of the penalty v; `none` deletes it and says so."""
    q_source: str = setting("basin", choices=["basin", "routing"])
    """Transition probability of codes, or persistence of the visited experts."""
    nulls: bool = setting(False)
    """Also record what must show nothing: untrained twin, controller off, human text. Shuffled and reversed chunks and
    constant inputs are looked at in any case."""
    perturb: list[str] = setting([])
    """Ways to interrupt a text, from one saved moment each: none,neutral,random,offtopic,blank."""
    doses: list[int] = setting([8])
    """Tokens that are inserted."""
    perturb_at: list[int] = setting([15])
    """Chunks after which a text is interrupted."""
    response_chunks: int = setting(5, low=1)
    """Chunks that are followed after an interruption."""
    output: str = setting("outputs/halflife")
    """Folder of everything that is measured; the same command goes on where it was left."""


def session_settings(settings: HalflifeSettings, seed: int, eos_id: int | None) -> SessionSettings:
    return SessionSettings(
        chunk_tokens=settings.chunk_size,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        eos_id=eos_id,
        eos=settings.eos,
        signals=settings.mode,
        constraints=settings.constraints,
        q_source=settings.q_source,
    )


def check_halflife(settings: HalflifeSettings) -> None:
    """Before anything is loaded. Raises InputError."""
    if not settings.model:
        raise InputError("model must be given: model=<directory of a run, folder or hub name>, or model=[a,b]")
    twice = next((name for name in settings.model if settings.model.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"model={twice} is named twice: name every model once")
    wrong = next((arm for arm in settings.perturb if arm not in ARMS), None)
    if wrong is not None:
        raise InputError(f"perturb={wrong}: there are {', '.join(ARMS)}")
    chosen(settings.constraints)
    if settings.temperature == 0 and settings.seeds > 1:
        raise InputError("seeds: at temperature=0 all texts of a prompt are one; set seeds=1 or a temperature")
    if not settings.perturb:
        return
    late = next((at for at in settings.perturb_at if not 1 <= at <= settings.chunks), None)
    if late is not None:
        raise InputError(
            f"perturb_at={late}: a text of chunks={settings.chunks} pauses after chunks 1 to {settings.chunks}"
        )
    low = next((dose for dose in settings.doses if dose < 1), None)
    if low is not None:
        raise InputError(f"doses={low}: insert at least one token; perturb=none is the dose of 0")
