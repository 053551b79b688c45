"""`python -m chronomoe.size model=cdrmix_40b [key=value …]`: what a model weighs and costs, before any of it exists.

Prints parameters part by part, memory per device for the sharding, optimizer and precision that the config says, and
tokens per second at a given utilisation. `solve=…` also finds the expert width that meets a target. Keys are those of
`train.py` and these:

| key | meaning |
|---|---|
| mfu | share of the peak that training reaches, such as 0.4 |
| peak_tflops | of one device, in the precision trained in: 989 for bf16 on an H100 |
| solve | what the expert width is chosen for: `expert` (one expert over all blocks), `stored` or `active` |
| target | parameters it shall hold, such as 125e6 |
| json | print JSON instead of tables |
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Any

from chronomoe.config import TrainConfig, compose_config
from chronomoe.entry import guarded, read_arguments
from chronomoe.model.sizing import Part, feedforward_parts, parts, size_of, solve_hidden_dim, training_flops
from chronomoe.settings import InputError, setting

BYTES = {"weights (fp32)": 4, "gradients": 4, "AdamW's two moments": 8}
HALF_COPIES = "working copies (bf16)"


@dataclass(kw_only=True)
class SizeSettings:
    mfu: float = setting(0.4, low=0.0, high=1.0)
    peak_tflops: float = setting(989.0, low=0.0)
    solve: str | None = setting(None, choices=["expert", "stored", "active"])
    target: float | None = setting(None, low=1.0)
    json: bool = setting(False)


def main() -> None:
    names = {field.name for field in dataclasses.fields(SizeSettings)}
    arguments = sys.argv[1:]
    own = [text for text in arguments if text.partition("=")[0] in names or text in ("-h", "--help")]
    settings = read_arguments(SizeSettings, own)
    found = report(compose_config([text for text in arguments if text not in own]), settings)
    print(json.dumps(found, indent=2) if settings.json else tables(found))


def report(config: TrainConfig, settings: SizeSettings) -> dict[str, Any]:
    """Everything the command says."""
    if (settings.solve is None) != (settings.target is None):
        raise InputError("solve and target go together: solve=expert target=125e6")
    if settings.solve is not None and settings.target is not None:
        if not math.isfinite(settings.target):
            raise InputError(f"target={settings.target} is no number of parameters: write one such as 125e6")
        config.model.hidden_dim = solved(config, settings.solve, settings.target)
    seq_len, trainer = config.data.seq_len, config.trainer
    devices = trainer.devices * trainer.num_nodes
    size = size_of(config.model, config.router)
    flops = training_flops(config.model, config.router, seq_len)
    return {
        "stored": size.stored,
        "active": size.active,
        "hidden_dim": config.model.hidden_dim,
        "schedule": "".join(config.model.kinds),
        "parts": {name: part._asdict() for name, part in parts(config.model, config.router, seq_len).items()},
        "memory_per_device": memory(size.stored, trainer.precision, devices if trainer.strategy == "fsdp" else 1),
        "devices": devices,
        "seq_len": seq_len,
        "training_flops_per_token": flops,
        "tokens_per_sec": settings.mfu * settings.peak_tflops * 1e12 * devices / flops,
        "mfu": settings.mfu,
        "peak_tflops": settings.peak_tflops,
    }


def memory(stored: int, precision: str, shards: int) -> dict[str, float]:
    """Bytes on each device, activations not included: they depend on what is recomputed."""
    each = dict(BYTES) | ({} if precision == "32-true" else {HALF_COPIES: 2})
    return {name: stored * size / shards for name, size in each.items()}


def solved(config: TrainConfig, kind: str, target: float) -> int:
    """The expert width with which the model meets the target. Shared experts are as wide as the others."""
    model, router = config.model, config.router
    if model.dense:
        raise InputError("solve: a dense model has no experts to size; leave model.dense out")
    routed = {"expert": 1.0, "stored": float(model.num_experts), "active": router.experts_per_token}[kind]
    count, fixed = routed, 0
    if kind != "expert":
        found = feedforward_parts(model, router)
        count = routed + model.num_shared_experts
        banks: list[Part] = [found[name] for name in ("experts", "shared experts") if name in found]
        fixed = getattr(size_of(model, router), kind) - sum(getattr(bank, kind) for bank in banks)
    try:
        return solve_hidden_dim(model, target - fixed, count)
    except ValueError as error:
        raise InputError(f"target={target:g}: {error} (all but the experts hold {fixed:,})") from None


def tables(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'part':<16}{'stored':>18}{'active':>18}{'GFLOP/token':>14}"]
    for name, part in found["parts"].items():
        lines.append(f"{name:<16}{part['stored']:>18,}{part['active']:>18,}{part['flops'] / 1e9:>14.4f}")
    lines.append(f"{'all':<16}{found['stored']:>18,}{found['active']:>18,}")
    lines += ["", f"blocks          {found['schedule']}", f"expert width    {found['hidden_dim']:,}", ""]
    total = sum(found["memory_per_device"].values())
    lines.append(f"memory per device, {found['devices']} device(s), activations not included")
    lines += [f"  {name:<22}{size / 2**30:>12,.1f} GiB" for name, size in found["memory_per_device"].items()]
    lines += [f"  {'all':<22}{total / 2**30:>12,.1f} GiB", ""]
    lines.append(
        f"{found['training_flops_per_token'] / 1e9:,.2f} GFLOP a token in training at {found['seq_len']:,} tokens of "
        f"context: {found['tokens_per_sec']:,.0f} tokens/s on {found['devices']} x {found['peak_tflops']:g} TFLOP/s at "
        f"{found['mfu']:.0%}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    guarded(main)
