"""torch's profiler around a few steps, and what it recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile


def record(run: Callable[[], Any]) -> list[FunctionEvent]:
    """The events of `run`, on the host and, where there is one, on the GPU."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells every start and stop otherwise
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, acc_events=True) as profiled:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    return list(profiled.events() or [])
