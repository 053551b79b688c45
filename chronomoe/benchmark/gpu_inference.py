"""Mixtral-8x7B at full size in bf16 with random weights: reading a prompt and decoding, three ways on the same weights.

| system | what runs |
|---|---|
| transformers | its own model and `generate`, nothing of ours attached |
| adapter | the same model steered (pretrained/steered.py), our loop; attached for its turn only |
| native | our model; experts, norms, embedding and head are the very same tensors, q, k, v laid out once more |

    foretold bytes = 2 parameters + 4 L S G A    (S tokens cached, G key-value heads of width A); activations apart
All three stay in memory, so every peak holds the copies too.
At the end a short session with telemetry on, through the adapter: what half-life measurement costs a token.

Axes: B batch, S sequence, L layers, G key-value heads, A head width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chronomoe.benchmark.gpu_training import TINY, Save
from chronomoe.benchmark.job import default_device
from chronomoe.benchmark.memory import peak, reset_peak
from chronomoe.benchmark.rows import spread
from chronomoe.config import TrainConfig, compose_config
from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sizing import size_of
from chronomoe.pretrained.mixtral import from_mixtral, mixtral_config
from chronomoe.pretrained.steered import SteeredModel
from chronomoe.session.calibration import calibrate
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.training.autotune import wait

Decode = Callable[[Tensor, int], Any]
"""(prompt [1, S], how many) -> new tokens, drawn greedily."""


class Lengths(NamedTuple):
    prompt: int
    new: int
    calibration: int
    chunks: int


def build_base(config: TrainConfig, device: torch.device) -> Any:
    """transformers' model with random weights in bf16, made where it stays."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        base = AutoModelForCausalLM.from_config(mixtral_config(config.model, config.router), dtype=torch.bfloat16)
    return base.eval()


def share_weights(base: Any, config: TrainConfig, device: torch.device) -> LanguageModel:
    """Our model around transformers' tensors; only q, k, v are copied."""
    with torch.device("meta"):
        model = LanguageModel(config.model, config.router)
    model.load_state_dict(from_mixtral(base.state_dict(), config.model), strict=False, assign=True)
    for module in model.modules():  # the field and the sensor begin empty
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros_like(buffer, device=device))
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, f"transformers has no {left}"
    return model.eval()


def by_us(model: Any) -> Decode:
    return lambda prompt_1S, count: list(generate(model, prompt_1S, max_new_tokens=count, temperature=0))


def by_transformers(base: Any) -> Decode:
    def run(prompt_1S: Tensor, count: int) -> Tensor:
        options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
        with torch.inference_mode():
            new: Tensor = base.generate(
                prompt_1S, attention_mask=torch.ones_like(prompt_1S), max_new_tokens=count, **options
            )
        return new

    return run


def time_once(decode: Decode, prompt_1S: Tensor, new: int) -> dict[str, float]:
    """Prompt tokens per second to the first token, and further tokens per second."""
    seconds = []
    for count in (1, new):
        wait(prompt_1S.device)
        started = time.perf_counter()
        decode(prompt_1S, count)
        wait(prompt_1S.device)
        seconds.append(time.perf_counter() - started)
    first, whole = seconds
    return {"prefill": prompt_1S.shape[1] / first, "decode": (new - 1) / max(whole - first, 1e-9)}


def foretold_bytes(config: TrainConfig, cached: int) -> int:
    model = config.model
    width = model.dim // model.num_heads
    cache = 2 * model.num_layers * cached * model.num_kv_heads * width
    return 2 * (size_of(model, config.router).stored + cache)


def run(tiny: bool, repeats: int, save: Save) -> dict[str, Any]:
    device = torch.device(default_device())
    lengths = Lengths(40, 4, 1500, 2) if tiny else Lengths(2048, 64, 8192, 3)
    small = [f"model.{name}={value}" for name, value in TINY.items()] if tiny else []
    config = compose_config(["model=mixtral_8x7b", *small])
    base = build_base(config, device)
    native = share_weights(base, config, device)
    prompt_1S = torch.randint(
        config.model.vocab_size, (1, lengths.prompt), generator=torch.Generator().manual_seed(1)
    ).to(device)
    foretold = foretold_bytes(config, lengths.prompt + lengths.new)
    result: dict[str, Any] = {
        "foretold_bytes": foretold,
        "copied_bytes": 2 * sum(p.numel() for name, p in native.named_parameters() if "qkv" in name),
        "lengths": lengths._asdict(),
        "largest_logit_difference": compare(base, native, prompt_1S),
        "rows": [],
    }
    save(result)
    found: dict[str, list[dict[str, float]]] = {}
    peaks: dict[str, int | None] = {}
    for repeat in range(repeats + 1):
        for name in ("transformers", "adapter", "native"):
            steered = SteeredModel(base) if name == "adapter" else None
            decode = by_transformers(base) if name == "transformers" else by_us(steered or native)
            reset_peak(device)
            rates = time_once(decode, prompt_1S, lengths.new)
            peaks[name] = peak(device)
            if repeat:  # the first one warms up
                found.setdefault(name, []).append(rates)
            if steered is not None:
                steered.detach()
        result["rows"] = [
            {
                "system": name,
                **{f"{what}_tokens_per_sec": spread([r[what] for r in rates]) for what in ("prefill", "decode")},
                "decode_over_transformers": statistics.median(
                    mine["decode"] / theirs["decode"] for mine, theirs in zip(rates, found["transformers"], strict=True)
                ),
                "peak_memory_bytes": peaks[name],
            }
            for name, rates in found.items()
        ]
        save(result)
    result["telemetry"] = measure_telemetry(SteeredModel(base), prompt_1S, lengths)
    return result


@torch.inference_mode()
def compare(base: nn.Module, native: LanguageModel, prompt_1S: Tensor) -> float:
    """Of the prompt's first tokens, relative to the largest logit; bf16 rounds to 1/256 of a number in each layer."""
    ids_1S = prompt_1S[:, :16]
    theirs, ours = base(ids_1S).logits.float(), native(ids_1S).logits_BSV.float()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def measure_telemetry(model: SteeredModel, prompt_1S: Tensor, lengths: Lengths) -> dict[str, float]:
    """Seconds of calibrating, and tokens per second of a session, every signal of every token recorded."""
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(model.settings.vocab_size, (lengths.calibration,), generator=generator).tolist()
    started = time.perf_counter()
    calibration = calibrate(model, text, least_tokens=lengths.calibration)
    calibrated = time.perf_counter()
    session = Session(model, calibration, SessionSettings(constraints=["none"]))
    session.begin(prompt_1S[0].tolist())
    begun, before = time.perf_counter(), len(session.state.ids)
    for _ in range(lengths.chunks):
        session.next_chunk()
        session.command("continue")
    seconds = time.perf_counter() - begun
    return {
        "calibration_seconds": calibrated - started,
        "calibration_tokens": lengths.calibration,
        "tokens_per_sec": (len(session.state.ids) - before) / seconds,
    }
