"""How far a running point is, read from the end of its `metrics.csv`."""

from __future__ import annotations

from pathlib import Path

from chronomoe.settings import InputError
from chronomoe.study.run import read_metrics

TAIL_BYTES = 8192


def steps_so_far(run_dir: Path) -> int:
    """The step of the last whole row; 0 before the first."""
    try:
        with (run_dir / "metrics.csv").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]  # the last one may be half written
    except OSError:
        return 0
    step = lines[-1].partition(b",")[0] if lines else b""
    return int(step) if step.isdigit() else 0


def losses_so_far(run_dir: Path) -> list[tuple[int, float]]:
    """(step, validation loss) of every evaluation."""
    try:
        metrics = read_metrics(run_dir / "metrics.csv")
    except InputError:
        return []  # being rewritten
    if "val/loss" not in metrics:
        return []
    rows = zip(metrics["step"].tolist(), metrics["val/loss"].tolist(), strict=True)
    return [(int(step), loss) for step, loss in rows if loss == loss]
