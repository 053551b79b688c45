"""The machine and the versions that numbers were measured with."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from chronomoe.training.autotune import processor_name

CPUINFO = Path("/proc/cpuinfo")
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")


def cpu_fields() -> dict[str, str]:
    """The first processor's entries, as the kernel lists them; empty where it does not."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text().split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def describe(threads: int, device: str) -> dict[str, Any]:
    fields = cpu_fields()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "flags": [flag for flag in TELLING_FLAGS if flag in flags],
        "threads": threads,
        "torch": torch.__version__,
        **{name: version_of(name) for name in ("transformers", "litgpt", "st-moe-pytorch")},
    }


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
