"""One quantity over the chunks of one run, what ended the run, and from where on its text is degenerate.

A run is one prompt continued with one sampling seed. Its statistics use the chunks before the first degenerate one:
from there on the model repeats itself, and what is measured is the repetition. Runs of one prompt are alike, so every
interval resamples prompts, with all their seeds (intervals.py).

Axes: K chunks of a run, which need not be as many in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from chronomoe.settings import InputError

Stop = Literal["K", "eos", "degenerate", "rule1", "rule2"]
Ending = Literal["censored", "stopped"]
FEWEST_CHUNKS = 10
"""Of a series to be fitted: five for the baseline and as many after it."""
FEWEST_PROMPTS, FEWEST_SEEDS = 20, 3
"""Below these an arm is measured all the same, and said to be too small."""


@dataclass(frozen=True)
class Series:
    value_K: NDArray[np.float64]
    """Finite; element 0 is the first chunk after the prompt."""
    prompt: str
    seed: int
    stop: Stop = "K"
    """`K`: all chunks that were asked for; `eos`: the model ended its text; `rule1`, `rule2`: a pause rule ended the
    run; `degenerate`: stopped for repeating itself."""
    degenerate_K: NDArray[np.bool_] | None = None
    """None: no chunk is degenerate."""

    def __post_init__(self) -> None:
        who = f"series of prompt {self.prompt}, seed {self.seed}"
        if self.value_K.ndim != 1 or not len(self.value_K):
            raise InputError(
                f"{who}: shape {list(self.value_K.shape)}; one number a chunk is needed, at least one chunk"
            )
        bad = np.flatnonzero(~np.isfinite(self.value_K))
        if len(bad):
            raise InputError(f"{who}: chunk {bad[0]} is {self.value_K[bad[0]]}; leave it out or measure it again")
        if self.stop not in get_args(Stop):
            raise InputError(f"{who}: stop={self.stop}; it is one of {', '.join(get_args(Stop))}")
        if self.degenerate_K is not None and self.degenerate_K.shape != self.value_K.shape:
            raise InputError(f"{who}: {len(self.degenerate_K)} degenerate flags for {len(self.value_K)} chunks")

    @cached_property
    def onset(self) -> int:
        """The first degenerate chunk; the number of chunks if there is none."""
        flags = np.zeros(len(self.value_K), bool) if self.degenerate_K is None else self.degenerate_K
        return int(np.append(flags, True).argmax())

    @property
    def observed_K(self) -> NDArray[np.float64]:
        """The chunks before the first degenerate one."""
        return self.value_K[: self.onset]

    @property
    def ending(self) -> Ending:
        """`stopped`: the run ended itself, by EOS or by a pause rule, which its pressure may have brought about.

        `censored`: observation ended, at the last chunk asked for or where the text became degenerate.
        """
        whole = self.onset == len(self.value_K)
        return "stopped" if whole and self.stop in ("eos", "rule1", "rule2") else "censored"


def prompt_indices(arm: Sequence[Series]) -> NDArray[np.int64]:
    """The number of each series' prompt, from 0 in order of appearance, [S]."""
    return in_order([series.prompt for series in arm])


def in_order(names: Sequence[str]) -> NDArray[np.int64]:
    """The number of each name, from 0 in order of appearance."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)


def shortage(arm: Sequence[Series]) -> str | None:
    """What an arm lacks to be large enough, in words; None if nothing."""
    prompts = {series.prompt for series in arm}
    fewest = min((sum(series.prompt == prompt for series in arm) for prompt in prompts), default=0)
    if len(prompts) >= FEWEST_PROMPTS and fewest >= FEWEST_SEEDS:
        return None
    return f"{len(prompts)} prompts x {fewest} seeds; intervals need {FEWEST_PROMPTS} x {FEWEST_SEEDS}"
