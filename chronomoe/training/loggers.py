"""The loggers of a run: `metrics.csv` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger

from chronomoe.training.launch import is_first_process
from chronomoe.training.metrics_file import MetricsFile
from chronomoe.training.settings import LoggerSettings
from chronomoe.training.tensorboard import TensorBoard
from chronomoe.training.wandb_run import end_wandb, start_wandb


def build_loggers(
    settings: LoggerSettings, run_dir: Path, config: dict[str, Any], *, run_id: str, from_step: int
) -> list[Logger]:
    """`config` is the resolved config as plain containers; `run_id` stays the same when a run is resumed."""
    loggers: list[Logger] = [MetricsFile(run_dir / "metrics.csv", keep_up_to_step=from_step)]
    if settings.tensorboard:
        loggers.append(TensorBoard(run_dir, config))
    if settings.wandb and is_first_process():
        loggers.append(start_wandb(settings, run_dir, config, run_id))
    return loggers


def close_loggers(loggers: Sequence[Logger], numbers: dict[str, Any], objective: str) -> str | None:
    """Tell the loggers how the run ended, in the `numbers` of `summary.json`, of which `objective` is what its sweep
    makes small; the line that syncs its W&B run if that was offline.

    Ending the W&B run also lets the next job of a multirun start its own.
    """
    sync_line = None
    if is_first_process():
        for logger in loggers:
            if isinstance(logger, TensorBoard):
                logger.end(numbers)
            elif isinstance(logger, WandbLogger):
                sync_line = end_wandb(logger, numbers, objective)
    return sync_line
