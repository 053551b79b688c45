"""What a run's curves show, in one plain sentence each: the titles of its figures and the captions of its report.

Sentences are computed from the records and state numbers only; judging them is left to the reader.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.run import Curve, Routing, Run, finite_curve
from chronomoe.study.series import utilisation

ENDS = 0.05
"""Share of the records that `start` and `end` mean: one step alone is mostly sampling noise."""

CONTROL_UNITS = {"lens": "logits", "pressure": "logits", "bias": "logits", "log_temperature": "ln T"}

COHERENCE_SCALES = {
    "entropy": "0 = even load",
    "alignment": "0 = layers unrelated",
    "stability": "1 = load stands still",
    "phi": "0 = independent experts",
}
"""What a reading of each measure in `chrono/coherence.py` says."""


def identity(run: Run) -> str:
    """Which run this is, for the second line of a figure: law, shape, data, seed."""
    return "  ·  ".join(
        [f"law {run.setting('chrono.law')}", shape(run), f"data {data(run)}", f"seed {run.setting('seed')}"]
    )


def shape(run: Run) -> str:
    """`2 layers × 8 experts, top-2` or `2 layers, dense`."""
    layers, experts, top_k = (run.setting(key) for key in ("model.num_layers", "model.num_experts", "router.top_k"))
    return (
        f"{layers} layers, dense" if run.setting("model.dense") else f"{layers} layers × {experts} experts, top-{top_k}"
    )


def data(run: Run) -> str:
    return str(run.setting("data.name") or run.setting("data.path") or run.setting("data.source"))


def loss(run: Run) -> str:
    train, val = run.curve("train/loss"), run.curve("val/loss")
    parts = []
    if len(train.step):
        start, end = ends(train)
        parts.append(f"Training loss {start:.2f} → {end:.2f}")
    if len(val.step):
        parts.append(f"validation {val.value[-1]:.3f} nats/token at step {val.step[-1]}")
    return ", ".join(parts) or "No loss was recorded"


def coherence(run: Run) -> str:
    curve, train = run.curve("chrono/coherence"), run.curve("train/loss")
    if not len(curve.step):
        return "No coherence was recorded"
    start, end = ends(curve)
    sentence = f"Coherence {start:.2g} → {end:.2g} ({coherence_scale(run)})"
    if len(train.step):
        sentence += " while the loss goes {:.2f} → {:.2f}".format(*ends(train))
    return sentence


def max_vio(run: Run) -> str:
    mean = run.curve("router/max_vio")
    if not len(mean.step):
        return "No MaxVio was recorded"
    start, end = ends(mean)
    return f"MaxVio {start:.2f} → {end:.2f}: the busiest expert ends {1 + end:.2f} × its fair share, mean over layers"


def usage(run: Run, layer: int | None = None) -> str:
    """How unevenly the last records' tokens were spread, in one layer or (None) over all."""
    if run.routing is None:
        return "No routing was recorded"
    tokens = run.routing.tokens_per_expert
    tokens = tokens if layer is None else tokens[:, layer : layer + 1]
    count = num_end_records(len(tokens))
    first, last = (utilisation(part.sum(axis=0)) for part in (tokens[:count], tokens[-count:]))
    return (
        f"Busiest expert {np.nanmax(first):.2f} → {np.nanmax(last):.2f} × its fair share, "
        f"least used {np.nanmin(first):.2f} → {np.nanmin(last):.2f} ×"
    )


def layers(shown: NDArray[np.float64]) -> str:
    """The busiest and the least used expert in utilisation [L, E], by layer and number."""
    busy, idle = (np.unravel_index(pick(shown), shown.shape) for pick in (np.nanargmax, np.nanargmin))
    return (
        f"Busiest: layer {busy[0]} expert {busy[1]}, {shown[busy]:.2f} × its fair share; "
        f"idlest: layer {idle[0]} expert {idle[1]}, {shown[idle]:.2f} ×"
    )


def control(run: Run) -> str:
    """The furthest that lens, pressure and bias went from neutral at the end of the run."""
    if run.routing is None or not run.routing.controls:
        return "No control was recorded"
    controls = {name: values for name, values in run.routing.controls.items() if CONTROL_UNITS[name] == "logits"}
    if not any(values.any() for values in controls.values()):
        return "No control acted: " + ", ".join(controls) + " stayed at 0"
    largest = {name: np.abs(values[-num_end_records(len(values)) :]).max() for name, values in controls.items()}
    return (
        "Furthest from 0 at the end: " + ", ".join(f"{name} {value:.2f}" for name, value in largest.items()) + " logits"
    )


def reach(values: NDArray[np.float32]) -> str:
    """The range one layer's control [N, E] covers over its experts at the end of the run."""
    end = values[-num_end_records(len(values)) :]
    return f"Ends between {end.min():+.2f} and {end.max():+.2f}".replace("-", "−")


def shown_controls(routing: Routing) -> dict[str, NDArray[np.float32]]:
    """The recorded controls [N, L, E]; the log-temperature only where it was ever used (it is off by default)."""
    return {name: values for name, values in routing.controls.items() if name != "log_temperature" or values.any()}


def coherence_by_layer(run: Run) -> list[Curve]:
    """One curve a MoE layer. A law without coherence leaves zeros in the routing record, which are no measurement."""
    if run.routing is None or run.routing.coherence is None or "chrono/coherence" not in run.metrics:
        return []
    return [finite_curve(run.routing.step, values) for values in run.routing.coherence.T]


def coherence_scale(run: Run) -> str:
    """What the ends of the configured coherence measure mean."""
    measure = run.setting("chrono.coherence") or "entropy"
    return COHERENCE_SCALES.get(measure, measure)


def unigram_loss(run: Run) -> float | None:
    """Loss in nats per token of the model that only knows word frequencies: what a trained model has to beat."""
    perplexity = run.summary.get("unigram_perplexity")
    return math.log(perplexity) if perplexity else None


def ends(curve: Curve) -> tuple[float, float]:
    """Mean of the first and of the last few points."""
    count = num_end_records(len(curve.value))
    return float(curve.value[:count].mean()), float(curve.value[-count:].mean())


def num_end_records(length: int) -> int:
    return max(1, round(ENDS * length))
