"""How often a step makes the host wait for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import record_function

from chronomoe.benchmark.profiling import record

STEP = "the step that is counted"
WAITS = (
    "aten::_local_scalar_dense",  # item, float(), bool() of a tensor
    "aten::nonzero",  # and everything that indexes by a mask
    "aten::_unique2",
    "aten::equal",
    "cudaStreamSynchronize",  # and every blocking copy
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
)


def host_synchronisations(step: Callable[[], Any]) -> dict[str, int]:
    """Event -> how often it occurred in one step; what did not occur is left out. Without a GPU only operations are
    seen, and they say where a GPU would have been waited for."""

    def run() -> None:
        with record_function(STEP):
            step()

    events = record(run)
    whole = next(event.time_range for event in events if event.name == STEP)
    inside = [e.name for e in events if whole.start <= e.time_range.start <= whole.end]  # the profiler itself waits too
    names = Counter(inside)
    return {name: names[name] for name in WAITS if names[name]}
