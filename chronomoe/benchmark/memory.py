"""How much memory this process has taken: the kernel's own high-water mark, or the allocator's on a GPU.

The mark (VmHWM) counts every resident page, imports included, and never falls by itself; Linux lets a process reset it.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

from chronomoe.training.allocator import give_back_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def read_status(field: str) -> int | None:
    """Bytes; None where there is no such file, which is everywhere but on Linux."""
    if not STATUS.is_file():
        return None
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(field + ":")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def held(device: torch.device) -> int | None:
    """Bytes this process holds now."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else read_status("VmRSS")


def peak(device: torch.device) -> int | None:
    """The most bytes this process held at once since the last `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else read_status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """From here on. What was freed before is first given back, so that it doesn't count as held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    give_back_freed_memory()
    if CLEAR.exists():
        with suppress(OSError):  # where it is forbidden the mark keeps what came before
            CLEAR.write_text("5")
