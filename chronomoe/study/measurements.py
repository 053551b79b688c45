"""What runs are compared by: every metric of a finished run, what it is called, and which way is better.

| group | metrics | read from |
|---|---|---|
| loss | validation loss, perplexity | `summary.json` |
| balance | MaxVio early, late and held out; load entropy; dead experts | `summary.json` |
| information | mutual information of token and expert, token entropy | `summary.json` |
| specialisation | of domains, debiased: of the trained model, and beyond its untrained twin's | `evaluation.json` |
| stability | loss spikes, tail of the gradient norm (`stability.py`) | `metrics.csv` |
| speed | tokens per second | `summary.json` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from chronomoe.study.numbers import NUMBERS
from chronomoe.study.run import Run
from chronomoe.study.stability import grad_norm_tail, loss_spikes


class Metric(NamedTuple):
    key: str
    label: str
    unit: str
    form: str
    """Format specification of the value."""
    meaning: str
    group: str
    higher_is_better: bool
    read: Callable[[Run], Any]
    """The run's value; None where it has none."""


def of_summary(key: str, group: str, higher_is_better: bool = False) -> Metric:
    number = next(number for number in NUMBERS if number.key == key)
    return Metric(*number, group, higher_is_better, lambda run: run.summary.get(key))


def specialisation(part: str, inner: tuple[str, ...] = ()) -> Callable[[Run], Any]:
    """Reader of the debiased domain specialisation, mean over layers, in one part of `evaluation.json`."""

    def read(run: Run) -> Any:
        node: Any = run.evaluation
        for name in (part, *inner, "domain_debiased"):
            node = node.get(name) if isinstance(node, dict) else None
        return node

    return read


_ALL = (
    of_summary("val_loss", "loss"),
    of_summary("val_perplexity", "loss"),
    of_summary("max_vio_early", "balance"),
    of_summary("max_vio_late", "balance"),
    of_summary("val_max_vio", "balance"),
    of_summary("load_entropy", "balance", higher_is_better=True),
    of_summary("dead_expert_frac", "balance"),
    of_summary("expert_information", "information", higher_is_better=True),
    of_summary("val_token_entropy", "information"),
    Metric(
        "specialisation",
        "Specialisation",
        "of 1",
        ".4f",
        "What an expert tells about the domain, beyond chance, on held-out documents.",
        "specialisation",
        True,
        specialisation("trained", ("mean",)),
    ),
    Metric(
        "specialisation_gain",
        "Specialisation beyond untrained",
        "of 1",
        ".4f",
        "The same minus that of the untrained twin, which is due to the words alone.",
        "specialisation",
        True,
        specialisation("trained_minus_untrained"),
    ),
    Metric(
        "loss_spikes",
        "Loss spikes",
        "of steps",
        ".2%",
        "Logged steps whose training loss is 5 robust deviations above its running median.",
        "stability",
        False,
        lambda run: loss_spikes(run.curve("train/loss").value),
    ),
    Metric(
        "grad_norm_tail",
        "Gradient norm's tail",
        "× median",
        ".2f",
        "99th percentile of the gradient norm over its median, after the first tenth.",
        "stability",
        False,
        lambda run: grad_norm_tail(run.curve("train/grad_norm").value),
    ),
    of_summary("tokens_per_sec", "speed", higher_is_better=True),
)
METRICS: dict[str, Metric] = {metric.key: metric for metric in _ALL}
"""Key -> metric, in the order they are shown."""


def measure(run: Run) -> dict[str, float]:
    """Key of METRICS -> the run's value, for those it has a finite one of."""
    values = {key: metric.read(run) for key, metric in METRICS.items()}
    return {key: float(value) for key, value in values.items() if is_number(value)}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
