"""`python -m chronomoe.perplexity model=<folder or hub name> text=<file> chrono=<law>`: a pretrained MoE's perplexity
with and without control.

The first half of the text sets the field, one tick of the law for each window; the second half is read with that field
frozen and without any (pretrained/perplexity.py). Keys of the law, such as chrono.pressure_scale=0.1, are those of
`train.py`. Prints both and their paired difference; `out=<file>` writes the same as JSON.

| key | meaning |
|---|---|
| model, text, law, parameters, num_bytes | what was read with what |
| window, stride, passes, ticks, bias_max | how the field was set, and how large it became (in the scores' units) |
| tokens, scored_tokens | of the whole text, and of the measured half |
| neutral, controlled | loss (nats per token), perplexity, max_vio, load_entropy |
| difference | windows, loss_difference, ci_low, ci_high (95%), lower_in (windows), p |
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from chronomoe.chrono.checks import check_decoding
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.config import compose_config
from chronomoe.data.tokenizer import encode, load_tokenizer
from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, setting
from chronomoe.study.pairs import ENOUGH_PAIRS, effect
from chronomoe.whole_file import write_json

ROWS = {
    "loss": "loss (nats per token)",
    "perplexity": "perplexity",
    "max_vio": "MaxVio",
    "load_entropy": "load entropy",
}

if TYPE_CHECKING:
    from chronomoe.pretrained.perplexity import Reading


@dataclass(kw_only=True)
class PerplexitySettings:
    model: str = setting()
    """A folder with a checkpoint, or a name of the hub."""
    text: str = setting()
    """A text file."""
    tokenizer: str | None = setting(None)
    """A folder or hub name with a tokenizer.json; null: the model's."""
    window: int = setting(512, low=2)
    """Tokens read at once."""
    stride: int = setting(256, low=1)
    """Tokens from one measured window to the next; only so many at a window's end are scored."""
    passes: int = setting(1, low=1)
    """Times the first half is read while the law ticks."""
    dtype: str = setting("auto", choices=["auto", "bf16", "fp16", "fp32"])
    """Of the weights; auto: the checkpoint's."""
    device_map: str | None = setting(None)
    """`auto` spreads layers over devices; null: the GPU where there is one, else the processor."""
    quantisation: str = setting("none", choices=["none", "int8", "nf4"])
    """By bitsandbytes; refused where it would not reach the experts."""
    revision: str | None = setting(None)
    """Branch, tag or commit of a hub name."""
    out: str | None = setting(None)
    """A JSON file for what is printed."""


def main() -> None:
    names = {field.name for field in dataclasses.fields(PerplexitySettings)}
    own = [text for text in sys.argv[1:] if text.partition("=")[0] in names or "=" not in text]
    settings = read_arguments(PerplexitySettings, own)
    chrono = compose_config([text for text in sys.argv[1:] if text not in own]).chrono
    check_decoding(chrono)
    if settings.stride > settings.window:
        raise InputError(f"stride={settings.stride} skips tokens: use at most window={settings.window}")
    if settings.out is not None and not Path(settings.out).absolute().parent.is_dir():
        raise InputError(f"out={settings.out}: give a file in a folder that exists")
    found = measure(settings, chrono, read_ids(settings))
    if settings.out is not None:
        write_json(Path(settings.out), found)
    print(table(found))


def read_ids(settings: PerplexitySettings) -> Tensor:
    """Token ids of the text, int64 [S]; no token is put in front of it."""
    path = Path(settings.text).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"text={path} cannot be read as UTF-8 text ({error}): give a text file") from None
    if (Path(settings.model).expanduser() / "checkpoints").is_dir():
        raise InputError(
            f"model={settings.model} is a run of this project: python -m chronomoe.evaluate reads it, and "
            "python -m chronomoe.convert takes it to a folder that this command reads"
        )
    language = load_tokenizer(settings.tokenizer or settings.model, key="tokenizer" if settings.tokenizer else "model")
    ids_S = torch.tensor(next(iter(encode(language.tokenizer, [text]))), dtype=torch.int64)
    needed = 2 * (settings.window + 1)
    if len(ids_S) < needed:
        raise InputError(
            f"text={path} has {len(ids_S)} tokens, and window={settings.window} needs {needed}: use a longer text, or "
            f"window={max(2, len(ids_S) // 2 - 1)}"
        )
    return ids_S


def measure(settings: PerplexitySettings, chrono: ChronoSettings, ids_S: Tensor) -> dict[str, Any]:
    """Everything the command says."""
    from chronomoe.pretrained.loading import describe, load_steered
    from chronomoe.pretrained.memory import measure as footprint_of
    from chronomoe.pretrained.perplexity import calibrate, read

    model = load_steered(
        settings.model,
        revision=settings.revision,
        dtype=settings.dtype,
        device_map=settings.device_map,
        quantisation=settings.quantisation,
        actuation=chrono.actuation,
    )
    if not model.family.streams:
        raise InputError(
            f"model={settings.model}: {model.family.name} is an encoder and a decoder, and reads no text alone"
        )
    if int(ids_S.max()) >= model.settings.vocab_size:
        raise InputError(f"tokenizer has ids that model={settings.model} has no row for: use the model's own tokenizer")
    if settings.window > model.settings.longest_text:
        raise InputError(f"window={settings.window}: the model reads at most {model.settings.longest_text}; use that")
    if settings.device_map is None and settings.quantisation == "none" and torch.cuda.is_available():
        model.to("cuda")
    print(describe(model), file=sys.stderr)
    controller = Chronovisor(chrono, *model.expert_bias_LE.shape)
    first_S, second_S = ids_S.tensor_split(2)
    window, stride = settings.window, settings.stride
    neutral = read(model, second_S, window, stride, progress("without control"))
    ticks = calibrate(model, controller, first_S, window, settings.passes, progress(f"chrono={chrono.law} ticks"))
    controlled = read(model, second_S, window, stride, progress("with control"))
    weight = footprint_of(model.base)
    return {
        "model": settings.model,
        "text": settings.text,
        "law": chrono.law,
        "parameters": weight.parameters,
        "num_bytes": weight.num_bytes,
        "window": window,
        "stride": stride,
        "passes": settings.passes,
        "ticks": ticks,
        "bias_max": float(model.expert_bias_LE.abs().max()),
        "tokens": len(ids_S),
        "scored_tokens": stride * len(neutral.losses),
        "neutral": neutral.as_json(),
        "controlled": controlled.as_json(),
        "difference": compare(neutral, controlled),
    }


def compare(neutral: Reading, controlled: Reading) -> dict[str, Any]:
    """The paired difference of losses, controlled minus neutral: mean, 95% interval, p of the sign-flip test."""
    found = effect(dict(enumerate(controlled.losses)), dict(enumerate(neutral.losses)), higher_is_better=False)
    assert found is not None
    return {
        "windows": found.n,
        "loss_difference": found.mean_difference,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "lower_in": found.wins,
        "p": found.p,
    }


def progress(label: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    from tqdm import tqdm

    return lambda it: tqdm(it, desc=label, unit="window", delay=2, disable=None, leave=False)


def table(found: dict[str, Any]) -> str:
    neutral, controlled, difference = found["neutral"], found["controlled"], found["difference"]
    lines = [
        f"{found['ticks']} ticks of chrono={found['law']} on the first half (largest bias {found['bias_max']:.3g}), "
        f"then {found['scored_tokens']:,} tokens of the second in {difference['windows']} windows:",
        "",
        f"  {'':<24}{'no control':>12}{'control':>12}{'difference':>12}",
    ]
    rows = {
        "loss (nats per token)": "loss",
        "perplexity": "perplexity",
        "MaxVio": "max_vio",
        "load entropy": "load_entropy",
    }
    lines += [
        f"  {label:<24}{neutral[key]:>12.4f}{controlled[key]:>12.4f}{controlled[key] - neutral[key]:>+12.4f}"
        for label, key in rows.items()
    ]
    lines += [
        "",
        f"  loss difference per window {difference['loss_difference']:+.4f}, 95% interval {difference['ci_low']:+.4f} "
        f"to {difference['ci_high']:+.4f}, lower in {difference['lower_in']} of {difference['windows']}, "
        f"p = {difference['p']:.3g}",
    ]
    if difference["windows"] < ENOUGH_PAIRS:
        lines.append(
            f"  fewer than {ENOUGH_PAIRS} windows: the interval says little; use a longer text or a smaller window"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    guarded(main)
