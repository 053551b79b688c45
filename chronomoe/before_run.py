"""Everything is checked before anything is written: Hydra calls `BeforeRun` ahead of making the run directory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chronomoe.config import parse
from chronomoe.entry import WRONG_INPUT, explain, leave
from chronomoe.run import preflight, resume_from
from chronomoe.settings import InputError


def task_config(config: DictConfig) -> DictConfig:
    """The composed config without Hydra's own part."""
    task = config.copy()
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


class BeforeRun(Callback):
    """Hydra calls this before it makes the run directory: the moment to refuse, and to choose the directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            task = parse(task_config(config))
            chosen = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
            resume = resume_from(task, config.hydra.run.dir if chosen else None)
            with read_write(config), open_dict(config):
                if resume is not None:
                    config.hydra.run.dir, task.ckpt_path = str(resume.run_dir), str(resume.checkpoint)
                    config.ckpt_path = task.ckpt_path
            preflight(task, config.hydra.run.dir)
        except InputError as error:
            leave(str(error), WRONG_INPUT)  # SystemExit: Hydra would swallow any other exception here

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a multirun as a whole if one of its points is wrong: better now than after the points before it."""
        overrides: list[str] = []
        try:
            for overrides in points(config):
                point = parse(compose(config.hydra.job.config_name, overrides))
                if point.ckpt_path == "last":
                    point.ckpt_path = None  # each job looks in its own folder
                preflight(point, config.hydra.sweep.dir, quiet=True)
        except InputError as error:
            leave(f"{' '.join(overrides)}: {error}" if overrides else str(error), WRONG_INPUT)
        except (HydraException, OmegaConfBaseException) as error:
            leave(explain(error), WRONG_INPUT)


def points(config: DictConfig) -> Iterator[list[str]]:
    """The overrides of every job of a multirun: the product of its axes, as Hydra's basic sweeper forms it.

    Axes that an experiment's file brings (`hydra.sweeper.params`) come first; the command line replaces one of the same
    key. Raises InputError for an interval, of which only a search can draw.
    """
    grid = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    axes: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides([*grid, *config.hydra.overrides.task]):
        swept = override.is_discrete_sweep()
        if override.is_sweep_override() and not swept:
            raise InputError(f"{override.input_line}: a multirun needs single values; search with python sweep.py")
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        axes[override.get_key_element()] = [f"{override.get_key_element()}={value}" for value in values]
    yield from map(list, itertools.product(*axes.values()))
