"""The three clocks: fast ticks every optimizer step, micro every `micro_period` ticks, macro every `macro_period`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from chronomoe.settings import setting


@dataclass(kw_only=True)
class ClockSettings:
    micro_period: int = setting(low=1)
    """Optimizer steps between refreshes of the pressure."""
    macro_period: int = setting(low=1)
    """Optimizer steps between updates of the lens."""


class Ticks(NamedTuple):
    """Which clocks strike at this step. Plain host values: control flow never waits for a device."""

    step: int
    """Optimizer steps so far, this one included; the first is 1."""
    micro: bool
    macro: bool


def strike(step: int, clocks: ClockSettings) -> Ticks:
    return Ticks(step, step % clocks.micro_period == 0, step % clocks.macro_period == 0)
