"""What a point of a sweep costs beyond a bare `train.py` of the same config: `python scripts/sweep_overhead.py`.

Runs `repeats` times in turn: `python train.py …` once for each seed, and `python sweep.py seed=…` over the same seeds,
one at a time. Both start from a prepared corpus and chosen kernels. The overhead of a point is (sweep - sum of the bare
runs) / points, so the sweep's own start is in it. Prints every repeat, then median, least and most.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import setting

PROJECT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class OverheadSettings:
    points: int = setting(5, low=1)
    """Seeds, each a point."""
    repeats: int = setting(5, low=1)
    steps: int = setting(20, low=1)
    """Optimizer steps of a run; the overhead does not depend on them."""


def seconds(*command: str) -> float:
    """Wall time of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    settings = read_arguments(OverheadSettings, sys.argv[1:])
    seeds = range(settings.points)
    short = (f"trainer.max_steps={settings.steps}", f"trainer.eval_every_steps={settings.steps}")
    overheads = []
    with tempfile.TemporaryDirectory() as folder:
        seconds("train.py", *short, f"hydra.run.dir={folder}/first")  # prepares the corpus, chooses the kernels
        for repeat in range(settings.repeats):
            bare = [seconds("train.py", *short, f"seed={s}", f"hydra.run.dir={folder}/{repeat}/{s}") for s in seeds]
            axis = ",".join(map(str, seeds)) if len(seeds) > 1 else "choice(0)"
            swept = seconds("sweep.py", *short, f"seed={axis}", "sweep.name=overhead", f"sweep.dir={folder}/{repeat}")
            overheads.append((swept - sum(bare)) / settings.points)
            print(
                f"repeat {repeat}: {settings.points} x train.py {sum(bare):.1f} s, sweep.py {swept:.1f} s, "
                f"{overheads[-1]:+.2f} s a point"
            )
    print(f"overhead a point: {statistics.median(overheads):+.2f} s ({min(overheads):+.2f} to {max(overheads):+.2f})")


if __name__ == "__main__":
    guarded(main)
