"""Where the time of a step goes: the exclusive time of every operation, given to the part it was called in.

A backward operation belongs to the part in which its forward operation was recorded: the engine's event carries the
sequence number that autograd gave to the forward one. Time no part claims is the rest, so parts add up to the whole.
On a processor time is wall time between the operations included; on a GPU it is the kernels' time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent

from chronomoe.benchmark.parts import PARTS, PREFIX, mark, part
from chronomoe.benchmark.profiling import record

BACKWARD = "autograd::engine::evaluate_function"


def profile_parts(module: nn.Module, step: Callable[[], Any], steps: int, device_type: str) -> dict[str, float]:
    """Seconds per step of every part. Marks the module, so do this after whatever must be timed undisturbed."""
    mark(module)
    step()

    def run() -> None:
        for _ in range(steps):
            with part("rest"):
                step()

    seconds = attribute(record(run), on_device=device_type == "cuda")
    return {name: value / steps for name, value in seconds.items()}


def attribute(events: Iterable[FunctionEvent], *, on_device: bool = False) -> dict[str, float]:
    """Exclusive seconds of every part over all events inside a part, and of those that autograd leads back to one."""
    in_order = sorted((e for e in events if is_host(e)), key=lambda event: event.time_range.start)
    part_of_node: dict[int, str] = {}
    for event in in_order:  # of the operations that saw a number, the last to start made the node that has it
        if event.sequence_nr >= 0 and not any(e.name.startswith(BACKWARD) for e in lineage(event)):
            part_of_node[event.sequence_nr] = part_of(event, {}) or "rest"
    seconds: dict[str, float] = defaultdict(float, dict.fromkeys(PARTS, 0.0))
    for event in in_order:
        name = part_of(event, part_of_node)
        if name is not None or on_device:
            microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
            seconds[name or "rest"] += microseconds / 1e6
    return dict(seconds)


def is_host(event: FunctionEvent) -> bool:
    return event.device_type == torch.autograd.DeviceType.CPU and not event.is_async


def lineage(event: FunctionEvent) -> Iterable[FunctionEvent]:
    """The event and everything it was called in, innermost first."""
    current: FunctionEvent | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def part_of(event: FunctionEvent, part_of_node: dict[int, str]) -> str | None:
    for ancestor in lineage(event):
        if ancestor.name.startswith(PREFIX):
            return ancestor.name.removeprefix(PREFIX)
        if ancestor.name.startswith(BACKWARD) and ancestor.sequence_nr in part_of_node:
            return part_of_node[ancestor.sequence_nr]
    return None
