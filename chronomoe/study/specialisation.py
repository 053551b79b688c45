"""An arm's specialisation by domain over its seeds, beside what chance, untrained weights and the ideal routing read.

Everything is the debiased domain information of `evaluation.json`, mean over layers: 0 is what permuted document labels
read, 1 an expert that tells the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from chronomoe.study.comparison import Arm
from chronomoe.study.measurements import is_number
from chronomoe.study.pairs import bootstrap_interval

LEVEL = 0.05


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


class Specialisation(NamedTuple):
    trained: Interval
    """Over seeds; of one seed it is a point."""
    untrained: float | None
    floor: float | None
    ceiling: float | None
    beyond_chance: int
    """Layers of all seeds whose own permutation test has p of at most LEVEL."""
    layers: int


def read_specialisation(arm: Arm) -> Specialisation | None:
    """None where no run of the arm was evaluated on several domains."""
    evaluations = [run.evaluation for run in arm.runs.values()]
    trained = present(evaluations, "trained", "mean", "domain_debiased")
    if not trained:
        return None
    low, high = bootstrap_interval(np.array(trained))
    layers = [layer for found in evaluations for layer in found.get("trained", {}).get("layers", [])]
    tested = [layer["domain_p_value"] for layer in layers if is_number(layer.get("domain_p_value"))]
    return Specialisation(
        trained=Interval(float(np.mean(trained)), low, high),
        untrained=mean(present(evaluations, "untrained", "mean", "domain_debiased")),
        floor=mean(present(evaluations, "references", "random", "domain_debiased")),
        ceiling=mean(present(evaluations, "references", "oracle", "domain_debiased")),
        beyond_chance=sum(p <= LEVEL for p in tested),
        layers=len(tested),
    )


def present(evaluations: Sequence[dict[str, Any]], *path: str) -> list[float]:
    """The number at the end of `path` in each evaluation that has it."""
    found = []
    for evaluation in evaluations:
        node: Any = evaluation
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if is_number(node):
            found.append(float(node))
    return found


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
