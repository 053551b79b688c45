"""The sweep as an Optuna study: for a search the source of its points, for a grid a mirror; for both what
`optuna-dashboard` shows.

The storage is an append-only journal, which several processes and machines share and which a crash leaves readable, or
a database by its URL. Trial n of a search depends on `sampler_seed`, n and the finished trials, not on when a sweep was
interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock

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

HASH, NAME, RUN_DIR, AGAIN, BEHIND = "config_hash", "point", "run_dir", "again", "behind"
"""User attributes of a trial; `again`: its values were given, not drawn; `behind`: the pruner asked it to stop."""


GRACE_SECONDS = 10
"""After so long a lock on the journal is taken for one that a killed sweep left."""

TABLES_SECONDS = 2.0
"""After so long another sweep has made the tables of a new database."""


class Draw(NamedTuple):
    number: int
    """Of the trial in its study."""
    overrides: list[str]
    trial: Trial | None


class Trials:
    def __init__(self, settings: SweepSettings, folder: Path, axes: Sequence[Axis], record: Mapping[str, Any]) -> None:
        """Raises InputError for a storage that cannot be opened, or that holds another sweep of this name."""
        import optuna
        from optuna.exceptions import ExperimentalWarning

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.settings, self.axes = settings, axes
        self._drawing = folder / "locks" / "drawing"
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
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            fault = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"sweep.storage={place} cannot be used ({fault}); restore it, or name another: finished points are "
                f"found again by their folders"
            ) from None

    def propose(self) -> Draw | None:
        """A new trial of a search; None once there are `sweep.trials`. One sweep draws at a time, so that two in a
        folder never draw the same number."""
        self._drawing.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._drawing):
            self._discard_half_drawn()
            number = sum(not frozen.user_attrs.get(AGAIN) for frozen in self.study.get_trials(deepcopy=False))
            if number >= (self.settings.trials or 0):
                return None
            self.study.sampler = build_sampler(self.settings.sampler, self.settings.sampler_seed, number)
            trial = self.study.ask({axis.key: distribution(axis) for axis in self.axes})
        return Draw(trial.number, self.overrides(trial.params), trial)

    def _discard_half_drawn(self) -> None:
        """What a sweep left that was killed while it drew; its number is drawn again, to the same values."""
        from optuna.trial import TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if not self._is_whole(frozen.params) and not frozen.user_attrs.get(AGAIN):
                self.study._storage.set_trial_user_attr(frozen._trial_id, AGAIN, True)
                self.study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)

    def _is_whole(self, params: Mapping[str, Any]) -> bool:
        return all(axis.key in params for axis in self.axes)

    def drawn(self) -> list[Draw]:
        """What this search, or another sweep in the same storage, drew before, in order. The trial is there while
        nobody has told how it ended."""
        from optuna.trial import Trial, TrialState

        return [
            Draw(
                frozen.number,
                self.overrides(frozen.params),
                Trial(self.study, frozen._trial_id) if frozen.state == TrialState.RUNNING else None,
            )
            for frozen in self.study.get_trials(deepcopy=False)
            if self._is_whole(frozen.params) and not frozen.user_attrs.get(AGAIN)
        ]

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
        """A running trial of a point that the sampler did not draw: one of a grid, or one that failed before. A killed
        sweep may have left it."""
        import optuna
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if frozen.user_attrs.get(HASH) == point.hash:
                return Trial(self.study, frozen._trial_id)
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
        """Hash of every point with a trial that was completed or pruned, or is being pruned -> `done` or `pruned`."""
        from optuna.trial import TrialState

        names = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED}
        found = {}
        for frozen in self.study.get_trials(deepcopy=False):
            status = names.get(frozen.state)
            if frozen.state == TrialState.RUNNING and frozen.user_attrs.get(BEHIND):
                status = PRUNED
            if status is not None and HASH in frozen.user_attrs:
                found[frozen.user_attrs[HASH]] = status
        return found

    def label(self, trial: Trial, point: Point) -> None:
        """Say which point a trial of a search became; without effect once another sweep has told how it ended."""
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError):
            for name, value in ((HASH, point.hash), (NAME, point.name), (RUN_DIR, str(point.run_dir))):
                trial.set_user_attr(name, value)

    def is_behind(self, trial: Trial, losses: Sequence[tuple[int, float]]) -> bool:
        """Whether the pruner stops a trial with these (step, loss); written down, so that no other sweep goes on with
        it."""
        from optuna.exceptions import UpdateFinishedTrialError

        reported = self.study._storage.get_trial(trial._trial_id).intermediate_values
        with suppress(UpdateFinishedTrialError):
            for step, loss in losses:
                if step not in reported:
                    trial.report(loss, step)
            if trial.should_prune():
                trial.set_user_attr(BEHIND, True)
                return True
        return False

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
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class MendingLock(JournalFileSymlinkLock):
        """Optuna reads past a last line that a crash left half written, but would write on in that same line, and a
        journal with such a line in its middle never opens again. Whoever holds the lock is the one who writes."""

        def acquire(self) -> bool:
            held = super().acquire()
            cut_torn_line(journal)
            return held

    if "://" in place:
        return open_database(place)
    journal = Path(place).absolute()  # the lock is a link to it, which a relative path would make dangle
    journal.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(journal), MendingLock(str(journal), grace_period=GRACE_SECONDS)))


def open_database(url: str) -> BaseStorage:
    """Another sweep may be at making the tables of a new one."""
    from optuna.exceptions import StorageInternalError
    from optuna.storages import get_storage
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return get_storage(url)
    except (SQLAlchemyError, StorageInternalError):
        time.sleep(TABLES_SECONDS)
        return get_storage(url)


def cut_torn_line(journal: Path) -> None:
    with journal.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def direction(metric: str) -> StudyDirection:
    from optuna.study import StudyDirection

    return StudyDirection.MAXIMIZE if METRICS[metric].higher_is_better else StudyDirection.MINIMIZE


def build_sampler(kind: str, sampler_seed: int, number: int) -> BaseSampler:
    """Of one trial. Mixed, so that searches of neighbouring seeds share no draws."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import RandomSampler, TPESampler

    seed = int(np.random.SeedSequence([sampler_seed, number]).generate_state(1)[0])
    if kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)  # points that run count as poor ones


def build_pruner(kind: str) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if kind == "median":
        return MedianPruner()
    return SuccessiveHalvingPruner() if kind == "halving" else NopPruner()
