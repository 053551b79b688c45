"""The loggers of a run: `metrics.csv` always, TensorBoard and Weights & Biases when asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger

from chronomoe.training.launch import is_first_process
from chronomoe.training.metrics_file import MetricsFile
from chronomoe.training.settings import LoggerSettings


def build_loggers(
    settings: LoggerSettings, run_dir: Path, config: dict[str, Any], *, run_id: str, from_step: int
) -> list[Logger]:
    """`config` is the resolved config as plain containers; `run_id` stays the same when a run is resumed."""
    loggers: list[Logger] = [MetricsFile(run_dir / "metrics.csv", keep_up_to_step=from_step)]
    if settings.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    if settings.wandb and is_first_process():
        loggers.append(build_wandb(settings, run_dir, config, run_id))
    return loggers


def build_wandb(settings: LoggerSettings, run_dir: Path, config: dict[str, Any], run_id: str) -> WandbLogger:
    import wandb

    offline = wandb_is_offline()
    logger = WandbLogger(
        name=f"{config['chrono']['law']}-seed{config['seed']}-{run_dir.name}",
        save_dir=run_dir,
        project=settings.project,
        group=settings.group,
        id=run_id,
        resume="allow",
        mode="offline" if offline else "online",
        job_type="train",
        settings=wandb.Settings(silent=True, console="off"),
    )
    experiment = logger.experiment
    experiment.config.update(config, allow_val_change=True)
    experiment.define_metric("train/tokens")
    for group in ("train", "val", "router", "chrono", "throughput"):
        experiment.define_metric(f"{group}/*", step_metric="train/tokens")
    return logger


def wandb_is_offline() -> bool:
    """W&B's own switch, or no login to go online with."""
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"] != "online"
    import wandb

    return wandb.api.api_key is None


def close_wandb(loggers: list[Logger], *, failed: bool) -> str | None:
    """End the W&B run, so that the next job of a multirun starts its own; the line that syncs it if it was offline."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            folder, offline = Path(run.dir).parent, run.settings.mode == "offline"
            run.finish(exit_code=int(failed))
            return f"wandb sync {folder}" if offline else None
    return None
