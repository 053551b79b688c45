"""A run's side of Weights & Biases: its name and group, its config, its axis, and the numbers it ends with.

| in W&B | what |
|---|---|
| group | `logger.group`, else the name of the sweep |
| name | the point of the sweep, else law, seed and folder |
| tags | the law and the model, or `dense` |
| config | every setting, nested: filter by `config.chrono.pressure_scale` |
| history | every row of `metrics.csv`, `figures/*`, `distribution/*`, all against `train/tokens` |
| summary | every number of `summary.json`, and `objective` |
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from chronomoe.training.settings import LoggerSettings

GROUPS = ("train", "val", "router", "chrono", "throughput", "figures", "distribution")
"""First part of every key that is logged."""

SUMMARIES = {
    "val/loss": "min",
    "val/perplexity": "min",
    "router/max_vio_worst": "max",
    "throughput/tokens_per_sec": "mean",
}
"""What stands in W&B's summary instead of the last value; the last evaluation's is `val_loss`, of `summary.json`."""

LONGEST_NAME = 100
"""Characters; W&B takes 128."""


def start_wandb(settings: LoggerSettings, run_dir: Path, config: dict[str, Any], run_id: str) -> WandbLogger:
    """`config` is the resolved config as plain containers."""
    import wandb

    logger = WandbLogger(
        name=run_name(config, run_dir),
        save_dir=run_dir,
        project=settings.project,
        group=settings.group or config["sweep"]["name"],
        tags=run_tags(config),
        id=run_id,
        resume="allow",
        mode="offline" if is_offline() else "online",
        job_type="train",
        settings=wandb.Settings(silent=True, console="off"),
    )
    experiment = logger.experiment
    experiment.config.update(config, allow_val_change=True)
    experiment.define_metric("train/tokens")
    for group in GROUPS:
        experiment.define_metric(f"{group}/*", step_metric="train/tokens")
    for key, summary in SUMMARIES.items():
        experiment.define_metric(key, step_metric="train/tokens", summary=summary)
    return logger


def run_name(config: dict[str, Any], run_dir: Path) -> str:
    name = config["sweep"]["point"] or f"{config['chrono']['law']}-seed{config['seed']}-{run_dir.name}"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def run_tags(config: dict[str, Any]) -> list[str]:
    model, router = config["model"], config["router"]
    if model["dense"]:
        return ["dense"]
    return [config["chrono"]["law"], f"{router['kind']}_{model['num_layers']}x{model['num_experts']}"]


def is_offline() -> bool:
    """W&B's own switch, or no login to go online with."""
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"] != "online"
    return not has_login()


def has_login() -> bool:
    """Whether W&B finds credentials here; asks neither the user nor the network."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    return bool(wandb.login(prompt=False, verify=False))


def end_wandb(logger: WandbLogger, numbers: dict[str, Any], objective: str) -> str | None:
    """Write the run's summary and end it, as failed unless it is done; the line that syncs it if it was offline."""
    run = logger.experiment
    final = numbers | {"objective": numbers.get(objective)}
    known = {key: value for key, value in final.items() if value is not None}
    run.summary.update(known | {"error": numbers["error"]})  # null too: an error that was overcome shall not stay
    folder, offline = Path(run.dir).parent, run.settings.mode == "offline"
    run.finish(exit_code=int(numbers["status"] != "done"))
    return f"wandb sync {folder}" if offline else None
