"""The sweep as an Optuna study: for a search the source of its points, for a grid a mirror; for both what
`optuna-dashboard` shows.

The storage is an append-only journal, which several processes and machines share and which a crash leaves readable, or
a database by its URL. Trial n of a search depends on `sampler_seed`, n and the finished trials, not on when a sweep was
interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chronomoe.settings import InputError
from chronomoe.study.measurements import METRICS
from chronomoe.sweep.axes import Axis, choices_of, distribution
from chronomoe.sweep.points import Point
from chronomoe.sweep.record import check_same
from chronomoe.sweep.settings import SweepSettings
from chronomoe.sweep.state import DONE, PRUNED

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import StudyDirection

HASH, NAME, RUN_DIR, AGAIN = "config_hash", "point", "run_dir", "again"
"""User attributes of a trial; `again`: its values were given, not drawn."""


class Draw(NamedTuple):
    overrides: list[str]
    trial: Trial | None


class Trials:
    def __init__(self, settings: SweepSettings, folder: Path, axes: Sequence[Axis], record: Mapping[str, Any]) -> None:
        """Raises InputError for a storage that cannot be opened, or that holds another sweep of this name."""
        import optuna
        from optuna.exceptions import ExperimentalWarning

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings, self.axes = settings, axes
        place = settings.storage or str(folder / "study.log")
        values = json.dumps({axis.key: axis.written for axis in axes}, sort_keys=True)
        # Optuna wants one set of values an axis and study, and a grid may gain values.
        name = f"{settings.name}-{hashlib.sha256(values.encode()).hexdigest()[:6]}"
        try:
            storage = open_storage(place)
            for other in optuna.get_all_study_summaries(storage):
                if other.study_name.rpartition("-")[0] == settings.name and "sweep" in other.user_attrs:
                    check_same(other.user_attrs["sweep"], record, f"sweep.storage={place}")
            self.study: Study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[direction(metric) for metric in settings.objectives],
                pruner=build_pruner(settings.pruner),
                load_if_exists=True,
            )
            with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
                self.study.set_metric_names(list(settings.objectives))
            self.study.set_user_attr("sweep", dict(record))
        except InputError:
            raise
        except Exception as error:  # each kind of storage has errors of its own
            if isinstance(error, OSError) and error.errno is not None:
                raise
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"sweep.storage={place} cannot be used ({fault}); restore it, or name another: finished points are "
                f"found again by their folders"
            ) from None

    def propose(self) -> Draw | None:
        """A new trial of a search; None once there are `sweep.trials`."""
        number = sum(not frozen.user_attrs.get(AGAIN) for frozen in self.study.get_trials(deepcopy=False))
        if number >= (self.settings.trials or 0):
            return None
        self.study.sampler = build_sampler(self.settings.sampler, self.settings.sampler_seed + number)
        trial = self.study.ask({axis.key: distribution(axis) for axis in self.axes})
        return Draw(self.overrides(trial.params), trial)

    def drawn(self) -> list[Draw]:
        """What this search, or another sweep in the same storage, drew before, in order, each set of values once. The
        trial is there while nobody has told how it ended."""
        from optuna.trial import Trial, TrialState

        draws: dict[str, Draw] = {}
        for frozen in self.study.get_trials(deepcopy=False):
            overrides = self.overrides(frozen.params)
            running = frozen.state == TrialState.RUNNING
            if running or " ".join(overrides) not in draws:
                draws[" ".join(overrides)] = Draw(overrides, Trial(self.study, frozen._trial_id) if running else None)
        return list(draws.values())

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """As the axes write their values."""
        return [f"{axis.key}={self.text(axis, params[axis.key])}" for axis in self.axes]

    @staticmethod
    def text(axis: Axis, value: Any) -> str:
        return axis.values[choices_of(axis).index(value)] if axis.values else json.dumps(value)

    @staticmethod
    def value(axis: Axis, text: str) -> Any:
        """The other way round."""
        return choices_of(axis)[axis.values.index(text)] if axis.values else json.loads(text)

    def begin(self, point: Point) -> Trial:
        """A running trial of a point that the sampler did not draw: one of a grid, or one that failed before."""
        import optuna
        from optuna.trial import Trial, TrialState

        written = dict(override.partition("=")[::2] for override in point.overrides)
        on_axes = [
            axis for axis in self.axes if axis.key in written and (written[axis.key] in axis.values or not axis.values)
        ]
        self.study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params={axis.key: self.value(axis, written[axis.key]) for axis in on_axes},
                distributions={axis.key: distribution(axis) for axis in on_axes},
                user_attrs={HASH: point.hash, NAME: point.name, RUN_DIR: str(point.run_dir), AGAIN: True},
            )
        )
        ours = [frozen for frozen in self.study.get_trials(deepcopy=False) if frozen.user_attrs.get(HASH) == point.hash]
        return Trial(self.study, ours[-1]._trial_id)

    def results(self) -> dict[str, str]:
        """Hash of every point with a trial that was completed or pruned -> `done` or `pruned`."""
        from optuna.trial import TrialState

        names = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED}
        ended = self.study.get_trials(deepcopy=False, states=list(names))
        return {frozen.user_attrs[HASH]: names[frozen.state] for frozen in ended if HASH in frozen.user_attrs}

    def label(self, trial: Trial, point: Point) -> None:
        """Say which point a trial of a search became."""
        for name, value in ((HASH, point.hash), (NAME, point.name), (RUN_DIR, str(point.run_dir))):
            trial.set_user_attr(name, value)

    def tell(self, trial: Trial, status: str, summary: Mapping[str, Any]) -> None:
        """How a trial ended; without effect if another sweep told it first."""
        from optuna.trial import TrialState

        values = [summary.get(metric) for metric in self.settings.objectives]
        state, told = TrialState.FAIL, None
        if status == PRUNED:
            state = TrialState.PRUNED
        elif status == DONE and all(value is not None and math.isfinite(value) for value in values):
            state, told = TrialState.COMPLETE, [float(value) for value in values if value is not None]
        self.study.tell(trial.number, told, state=state, skip_if_finished=True)


def open_storage(place: str) -> BaseStorage:
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    if "://" in place:
        return get_storage(place)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def direction(metric: str) -> StudyDirection:
    from optuna.study import StudyDirection

    return StudyDirection.MAXIMIZE if METRICS[metric].higher_is_better else StudyDirection.MINIMIZE


def build_sampler(kind: str, seed: int) -> BaseSampler:
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import RandomSampler, TPESampler

    if kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)  # points that run count as poor ones


def build_pruner(kind: str) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if kind == "median":
        return MedianPruner()
    return SuccessiveHalvingPruner() if kind == "halving" else NopPruner()
