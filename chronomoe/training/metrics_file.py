"""`metrics.csv`: one row a logged step, appended as the run goes; a resumed run goes on in the same file.

Lightning's CSVLogger deletes the file when a run resumes into its folder; this one keeps the rows up to the checkpoint.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from chronomoe.training.launch import is_first_process


class MetricsFile(Logger):
    """A row holds `step` and whatever was logged at it; a cell nobody filled is empty."""

    def __init__(self, path: Path, *, keep_up_to_step: int) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        if is_first_process():
            self._start_from([row for row in read_rows(path) if int(row["step"]) <= keep_up_to_step])

    def _start_from(self, rows: list[dict[str, str]]) -> None:
        self.columns = list(rows[0]) if rows else []
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        unfinished = self.path.with_suffix(".csv.tmp")
        with unfinished.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(unfinished, self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite(read_rows(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run directory has `config.yaml`; there is nothing to repeat here."""


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("step")]
