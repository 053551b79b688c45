"""The points of a sweep: each a complete, checked config, identified by the hash of what shapes its run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from chronomoe.before_run import task_config
from chronomoe.config import TrainConfig, all_keys, config_hash, parse, unknown_key, walk
from chronomoe.entry import explain
from chronomoe.settings import InputError
from chronomoe.sweep.axes import Axis, grid, plain, read_overrides

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Point:
    overrides: list[str]
    """What makes it, beside what all points of the sweep share."""
    config: TrainConfig
    run_dir: Path
    refusal: str | None = None
    """Why a search cannot run what it drew; `config` is then what all points share."""

    @property
    def name(self) -> str:
        return " ".join(self.overrides)

    @property
    def hash(self) -> str:
        return config_hash(self.config)


class Composer:
    """Composes points from the project's `configs/`; a context, because Hydra must know where they are.

    Hydra takes about 0.1 s for a config, most of it reading YAML. What single keys change is therefore put on top of a
    config that is composed once for each choice of groups, which gives the same (tested).
    """

    def __enter__(self) -> Composer:
        self._search_path = initialize_config_dir(str(CONFIGS), version_base="1.3")
        self._search_path.__enter__()
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        return self

    def __exit__(self, *error: Any) -> None:
        self._search_path.__exit__(*error)

    def shared(self, overrides: Sequence[str]) -> tuple[TrainConfig, Mapping[str, Any]]:
        """What all points share, and the axes that its files bring (`hydra.sweeper.params`)."""
        composed = compose("train", list(overrides), return_hydra_config=True)
        return parse(task_config(composed)), dict(composed.hydra.sweeper.get("params") or {})

    def point(self, shared: Sequence[str], overrides: Sequence[str], folder: Path) -> Point:
        """Compose and check one point; InputError names it. Its run directory is named after its hash."""
        name = " ".join(overrides)
        try:
            config = parse(self._compose(shared, overrides))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(f"{name}: {explain(error)}") from None
        config.sweep.point = name
        return Point(overrides=list(overrides), config=config, run_dir=folder / "runs" / config_hash(config))

    def _compose(self, shared: Sequence[str], overrides: Sequence[str]) -> DictConfig:
        values = [override for override in read_overrides(overrides) if sets_a_value(override)]
        groups = (*shared, *(text for text in overrides if text not in {value.input_line for value in values}))
        if groups not in self._composed:
            self._composed[groups] = compose("train", list(groups))
        config = copy.deepcopy(self._composed[groups])
        for override in values:
            try:
                OmegaConf.update(config, override.key_or_group, override.value())
            except (ConfigKeyError, ConfigAttributeError):
                raise InputError(unknown_key(override.key_or_group, all_keys())) from None
            except OmegaConfBaseException as error:
                raise InputError(str(error).splitlines()[0]) from None
        return config


def sets_a_value(override: Override) -> bool:
    """Whether it is `key=value` for a single key: no group's choice, nothing that Hydra's `+` or `~` stands before."""
    return override.type == OverrideType.CHANGE and not (CONFIGS / override.key_or_group).is_dir()


def beside(axes: Sequence[Axis], arms: Sequence[str]) -> list[list[str]]:
    """The overrides of the points beside the grid: every arm, crossed with the seeds."""
    seeds = [axis for axis in axes if axis.key == "seed"]
    return [[*arm.split(), *seed] for arm in arms for seed in grid(seeds)]


def for_arm(shared: Sequence[str], arm: Sequence[str]) -> list[str]:
    """What is shared with an arm beside the grid: no settings of a group that the arm chooses itself. What is set about
    one law (`chrono.gamma=0.3`) means nothing to the arm of another (`chrono=off`)."""
    chosen = {override.partition("=")[0] for override in arm if (CONFIGS / override.partition("=")[0]).is_dir()}
    return [text for text in shared if plain(text.partition("=")[0]).partition(".")[0] not in chosen or text in arm]


def without_repeats(points: Iterable[Point], arms: Sequence[str]) -> list[Point]:
    """Each run once. An arm may stand in the grid as well; two points of the grid that are one run are a mistake.

    Raises InputError for the latter: one of their axes changes nothing.
    """
    kept: dict[str, Point] = {}
    for point in points:
        twin = kept.setdefault(point.hash, point)
        if twin is not point and not any(twin.name.startswith(arm) for arm in arms):
            raise InputError(f"'{point.name}' and '{twin.name}' are the same run: an axis changes nothing there")
    return list(kept.values())


def varying(points: Sequence[Point]) -> list[str]:
    """Dotted keys of the settings in which the points differ."""
    settings = [{key: value for key, value, _ in walk(point.config)} for point in points]
    keys = dict.fromkeys(key for mine in settings for key in mine)
    absent = object()
    return [
        key
        for key in keys
        if not key.startswith("sweep.")
        and any(mine.get(key, absent) != settings[0].get(key, absent) for mine in settings)
    ]
