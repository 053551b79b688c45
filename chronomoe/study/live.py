"""Routing pictures while a run goes on, for TensorBoard and Weights & Biases.

| key | picture |
|---|---|
| figures/layers | utilisation, layers x experts, over the last records |
| figures/usage | utilisation, experts x time, one panel a layer |
| figures/control | lens, pressure and bias trajectories |
| distribution/bias, distribution/lens, distribution/utilisation | histogram over layers and experts |

Six keys whatever the model's size. They are drawn from what the run has on disk, so the pictures are the report's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from chronomoe.study import figures
from chronomoe.study.run import Run
from chronomoe.study.series import utilisation
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.step_end import StepEnd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from chronomoe.chrono.callback import ChronovisorCallback


class RoutingPictures(StepEnd):
    def __init__(
        self,
        settings: TrainerSettings,
        chronovisor: ChronovisorCallback,
        run_dir: Path,
        *,
        every_steps: int,
        tokens_per_step: int,
    ) -> None:
        super().__init__(settings)
        self.chronovisor, self.run_dir = chronovisor, run_dir
        self.every_steps, self.tokens_per_step = every_steps, tokens_per_step

    def at_step_end(self, trainer: L.Trainer, step: int) -> None:
        if trainer.is_global_zero and (step % self.every_steps == 0 or step == trainer.max_steps):
            self.show(trainer, step)

    def show(self, trainer: L.Trainer, step: int) -> None:
        self.chronovisor.record.save(self.chronovisor.record_path)
        run = Run.load(self.run_dir)
        drawn = {f"figures/{name}": draw(run) for name, draw in DRAWINGS.items()}
        pictures = {key: figure for key, figure in drawn.items() if figure is not None}
        values = distributions(run)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for key, figure in pictures.items():
                    logger.experiment.add_figure(key, figure, step)
                for key, value in values.items():
                    logger.experiment.add_histogram(key, value, step)
            elif isinstance(logger, WandbLogger):
                import wandb

                logged: dict[str, Any] = {key: wandb.Image(figure) for key, figure in pictures.items()}
                logged |= {key: wandb.Histogram(value.tolist()) for key, value in values.items()}
                axes = {"trainer/global_step": step, "train/tokens": step * self.tokens_per_step}
                logger.experiment.log(logged | axes)


DRAWINGS: dict[str, Callable[[Run], Figure | None]] = {
    "layers": figures.draw_layers,
    "usage": figures.draw_usage,
    "control": figures.draw_control,
}


def distributions(run: Run) -> dict[str, np.ndarray]:
    """The latest record's values over all layers and experts."""
    if run.routing is None:
        return {}
    latest = {name: values[-1] for name, values in run.routing.controls.items() if name in ("bias", "lens")}
    latest["utilisation"] = utilisation(run.routing.tokens_per_expert[-1])
    return {f"distribution/{name}": values.ravel() for name, values in latest.items()}
