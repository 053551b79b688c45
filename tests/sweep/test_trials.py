"""The study of a sweep: drawn alike however often it is interrupted, shared by sweeps, readable after a crash."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from chronomoe.settings import InputError
from chronomoe.sweep import trials as trials_module
from chronomoe.sweep.axes import read_axes
from chronomoe.sweep.points import Point
from chronomoe.sweep.settings import SweepSettings
from chronomoe.sweep.state import DONE, FAILED, PRUNED
from chronomoe.sweep.trials import AGAIN, BEHIND, HASH, Trials

AXES = {"chrono.pressure_scale": "tag(log, interval(0.01, 1))", "chrono.gamma": "interval(0,0.8)", "chrono": "off,sign"}
Open = Callable[..., Trials]


@pytest.fixture
def trials(tmp_path: Path) -> Open:
    """trials(…settings): the study of a random search of 6 trials, opened again at every call."""

    def trials(params: Any = AXES, where: str = "s", shared: Any = (), **settings: Any) -> Trials:
        chosen = SweepSettings(**{"name": "s", "sampler": "random", "trials": 6, **settings})
        axes, _ = read_axes(params, [])
        record = {
            "shared": dict(shared),
            "axes": {axis.key: axis.values or [axis.written] for axis in axes},
            "sampler": chosen.sampler,
            "objectives": list(chosen.objectives),
        }
        return Trials(chosen, tmp_path / where, axes, record)

    return trials


@pytest.fixture
def point(configure: Callable[..., Any]) -> Callable[..., Point]:
    """point(gamma): a point of a grid over chrono.gamma."""
    return lambda gamma: Point(
        overrides=[f"chrono.gamma={gamma}"], config=configure(f"chrono.gamma={gamma}"), run_dir=Path("r")
    )


GRID = {"chrono.gamma": "0,0.1,0.2"}


def draw_all(trials: Trials) -> list[list[str]]:
    draws = []
    while (draw := trials.propose()) is not None:
        draws.append(draw.overrides)
    return draws


def test_a_random_search_draws_the_same_points_however_it_is_interrupted(trials: Open) -> None:
    undisturbed = draw_all(trials(where="undisturbed"))
    assert len(undisturbed) == 6
    assert len({tuple(draw) for draw in undisturbed}) == 6
    interrupted = []
    for _ in range(6):
        interrupted.append(trials().propose().overrides)  # each by a sweep of its own, none of which told an end
    assert interrupted == undisturbed
    assert trials().propose() is None
    assert [draw.overrides for draw in trials().drawn()] == undisturbed


def test_how_trials_end_does_not_change_what_a_random_search_draws(trials: Open) -> None:
    undisturbed = draw_all(trials(where="undisturbed"))
    study, draws = trials(), []
    for number in range(6):
        draw = study.propose()
        draws.append(draw.overrides)
        study.tell(draw.trial, [DONE, FAILED, PRUNED][number % 3], {"val_loss": number})
    assert draws == undisturbed


def test_searches_of_neighbouring_seeds_share_no_draws(trials: Open) -> None:
    drawn = [draw for seed in range(3) for draw in draw_all(trials(where=str(seed), sampler_seed=seed))]
    assert len({tuple(draw[:2]) for draw in drawn}) == 18


def test_more_trials_go_on_where_a_search_ended(trials: Open) -> None:
    assert draw_all(trials(where="whole", trials=6)) == draw_all(trials(trials=4)) + draw_all(trials(trials=6))


def test_a_search_that_was_killed_while_it_drew_draws_that_point_again(trials: Open) -> None:
    undisturbed = draw_all(trials(where="undisturbed"))
    first = trials().propose().overrides
    study = trials()
    study.study.ask()  # begun, and nothing drawn
    half = study.study.ask()
    half._suggest("chrono.gamma", optuna.distributions.FloatDistribution(0.0, 0.8))
    again = trials()
    assert [draw.overrides for draw in again.drawn()] == [first]
    assert [first, *draw_all(again)] == undisturbed
    assert [draw.overrides for draw in trials().drawn()] == undisturbed


def test_sweeps_that_draw_at_once_draw_every_trial_once(trials: Open) -> None:
    undisturbed = draw_all(trials(where="undisturbed", trials=24))
    studies = [trials(trials=24) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        drawn = [draw for draws in pool.map(draw_all, studies) for draw in draws]
    assert sorted(drawn) == sorted(undisturbed)


def test_a_draw_is_written_as_the_axes_write_it(trials: Open) -> None:
    (draw,) = [trials({"x": "1e-3,1e-3"[:4], "y": "'a b'", "z": "[1,2]"}, trials=1).propose()]
    assert draw.overrides == ["x=0.001", "y='a b'", "z=[1,2]"]


def test_tpe_goes_where_the_objective_is_small(trials: Open) -> None:
    study = trials({"chrono.gamma": "interval(0,0.8)"}, sampler="tpe", trials=40)
    values = []
    while (draw := study.propose()) is not None:
        values.append(float(draw.overrides[0].partition("=")[2]))
        study.tell(draw.trial, DONE, {"val_loss": (values[-1] - 0.7) ** 2})
    early, late = values[:10], values[-10:]
    assert sum(abs(v - 0.7) for v in late) < 0.5 * sum(abs(v - 0.7) for v in early)


def test_two_objectives_give_a_front_each_in_its_direction(trials: Open) -> None:
    study = trials(
        {"chrono.gamma": "interval(0,0.8)"}, objectives=["val_loss", "load_entropy"], sampler="tpe", trials=3
    )
    for loss, entropy in ((1.0, 0.1), (2.0, 0.9), (3.0, 0.5)):
        study.tell(study.propose().trial, DONE, {"val_loss": loss, "load_entropy": entropy})
    assert [trial.values for trial in study.study.best_trials] == [[1.0, 0.1], [2.0, 0.9]]
    assert study.study.metric_names == ["val_loss", "load_entropy"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_point_without_its_objective_is_a_failed_trial(trials: Open, value: Any) -> None:
    study = trials()
    study.tell(study.propose().trial, DONE, {"val_loss": value})
    assert study.study.trials[0].state == TrialState.FAIL


def test_telling_twice_changes_nothing(trials: Open) -> None:
    study = trials()
    trial = study.propose().trial
    study.tell(trial, DONE, {"val_loss": 1.0})
    study.tell(trial, FAILED, {})
    assert (study.study.trials[0].state, study.study.trials[0].value) == (TrialState.COMPLETE, 1.0)


def test_a_grid_is_mirrored_with_its_points(trials: Open, point: Callable[..., Point]) -> None:
    study = trials(GRID, sampler="grid", trials=None)
    for gamma, loss in (("0", 3.0), ("0.2", 1.0)):
        study.tell(study.begin(point(gamma)), DONE, {"val_loss": loss})
    assert study.results() == {point("0").hash: DONE, point("0.2").hash: DONE}
    best = study.study.best_trial
    assert (best.params, best.user_attrs["point"]) == ({"chrono.gamma": 0.2}, "chrono.gamma=0.2")


def test_an_arm_beside_the_grid_has_no_value_on_its_axes(trials: Open, configure: Callable[..., Any]) -> None:
    study = trials(GRID, sampler="grid", trials=None)
    study.begin(Point(overrides=["chrono=off"], config=configure("chrono=off"), run_dir=Path("r")))
    assert study.study.trials[0].params == {}


def test_a_trial_that_a_killed_sweep_left_is_gone_on_with(trials: Open, point: Callable[..., Point]) -> None:
    settings: Any = {"params": GRID, "sampler": "grid", "trials": None}
    trials(**settings).begin(point("0"))
    study = trials(**settings)
    study.tell(study.begin(point("0")), DONE, {"val_loss": 1.0})
    assert [trial.state for trial in study.study.trials] == [TrialState.COMPLETE]


def test_a_failed_point_is_a_new_trial_that_is_none_of_the_drawn(trials: Open, configure: Callable[..., Any]) -> None:
    study = trials({"chrono.gamma": "interval(0,0.8)"}, trials=2)
    draw = study.propose()
    again = Point(overrides=draw.overrides, config=configure(*draw.overrides), run_dir=Path("r"))
    study.label(draw.trial, again)
    study.tell(draw.trial, FAILED, {})
    study.tell(study.begin(again), DONE, {"val_loss": 1.0})
    assert study.results() == {again.hash: DONE}
    assert [trial.state for trial in study.study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.study.trials[1].params == study.study.trials[0].params
    assert len(study.drawn()) == 1
    assert study.propose() is not None
    assert study.propose() is None


def test_a_label_comes_too_late_without_harm(trials: Open, point: Callable[..., Point]) -> None:
    """Another sweep may end a trial between two looks."""
    study = trials()
    trial = study.propose().trial
    trials().tell(trial, DONE, {"val_loss": 1.0})
    study.label(trial, point("0"))
    assert HASH not in study.study.trials[0].user_attrs


def prune_the_worst(study: Trials) -> tuple[Any, bool]:
    """Five trials whose losses fall, and one whose loss rises."""
    for number in range(5):
        trial = study.propose().trial
        assert not study.is_behind(trial, [(step, 5.0 - step + 0.01 * number) for step in (1, 2)])
        study.tell(trial, DONE, {"val_loss": 3.0})
    trial = study.propose().trial
    return trial, study.is_behind(trial, [(1, 6.0), (2, 7.0)])


def test_a_point_behind_the_median_is_pruned(trials: Open, point: Callable[..., Point]) -> None:
    study = trials(pruner="median")
    trial, is_behind = prune_the_worst(study)
    assert is_behind
    study.label(trial, point("0"))
    assert trials(pruner="median").results() == {point("0").hash: PRUNED}  # so no other sweep goes on with it
    study.tell(trial, PRUNED, {})
    assert study.study.trials[-1].state == TrialState.PRUNED
    assert trials(pruner="median").results() == {point("0").hash: PRUNED}


def test_a_point_that_ended_before_it_could_be_stopped_is_done(trials: Open, point: Callable[..., Point]) -> None:
    study = trials(pruner="median")
    trial, _ = prune_the_worst(study)
    study.label(trial, point("0"))
    study.tell(trial, DONE, {"val_loss": 9.0})
    assert study.results() == {point("0").hash: DONE}
    assert study.study.trials[-1].user_attrs[BEHIND]


def test_without_a_pruner_nothing_is_behind(trials: Open) -> None:
    assert prune_the_worst(trials(pruner="none"))[1] is False


def test_looking_again_at_the_same_losses_says_nothing(trials: Open) -> None:
    study = trials(pruner="median")
    trial = study.propose().trial
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for losses in ([(1, 2.0)], [(1, 2.0), (2, 1.5)], [(1, 2.0), (2, 1.5)]):
            study.is_behind(trial, losses)
    assert study.study.trials[0].intermediate_values == {1: 2.0, 2: 1.5}


def test_a_journal_with_a_torn_last_line_opens_and_goes_on(trials: Open, tmp_path: Path) -> None:
    """As a crash in the middle of a write leaves it."""
    first = trials().propose().overrides
    whole = trials()  # open while it happens
    with (tmp_path / "s" / "study.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"worker_id":"9d3e')
    study = trials()
    assert [draw.overrides for draw in study.drawn()] == [first]
    second, third = study.propose(), whole.propose()
    study.tell(second.trial, DONE, {"val_loss": 1.0})
    assert [draw.overrides for draw in trials().drawn()] == [first, second.overrides, third.overrides]


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_a_journal_torn_in_its_first_line_starts_anew(trials: Open, tmp_path: Path, kept: int) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.log").write_bytes(b'{"op_code":0,"worker_id":"9d3e'[:kept])
    trials().propose()
    assert len(trials().drawn()) == 1


def test_a_lock_on_the_journal_that_a_killed_sweep_left_is_broken(
    trials: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the sweep's folder is named relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials_module, "GRACE_SECONDS", 3)
    study = trials(storage="here/study.log")
    lock = study.study._storage._backend._lock
    lock.acquire()
    assert os.path.lexists("here/study.log.lock")
    assert trials(storage="here/study.log").propose() is not None
    assert not os.path.lexists("here/study.log.lock")


STORAGES = {"journal": "shared/study.log", "sqlite": "sqlite:///shared.db"}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
def test_sweeps_in_two_folders_share_a_storage(
    trials: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = trials(where="here", storage=storage), trials(where="there", storage=storage)
    drawn = [study.propose().overrides for study in (here, there, here)]
    assert [draw.overrides for draw in there.drawn()] == drawn == draw_all(trials(where="alone"))[:3]


def test_a_database_that_another_sweep_is_making_is_waited_for(
    trials: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_storage, calls = optuna.storages.get_storage, []

    def at_first_half_made(url: str) -> Any:
        calls.append(url)
        if len(calls) == 1:
            raise optuna.exceptions.StorageInternalError("table studies already exists")
        return get_storage(url)

    monkeypatch.setattr("optuna.storages.get_storage", at_first_half_made)
    monkeypatch.setattr(trials_module, "TABLES_SECONDS", 0.0)
    assert trials(storage=f"sqlite:///{tmp_path / 'study.db'}").propose() is not None


KILL_IN_WRITE = """
import os, signal, sys
from pathlib import Path
from chronomoe.sweep.axes import read_axes
from chronomoe.sweep.settings import SweepSettings
from chronomoe.sweep.trials import Trials
settings = SweepSettings(name="s", sampler="random", trials=6)
axes, _ = read_axes({"chrono.gamma": "interval(0,0.8)"}, [])
record = {"shared": {}, "axes": {"chrono.gamma": [axes[0].written]}, "sampler": "random", "objectives": ["val_loss"]}
trials = Trials(settings, Path("s"), axes, record)
trials.propose()
backend = trials.study._storage._backend
sync, left = os.fsync, int(sys.argv[1])
def fsync(file):
    global left
    sync(file)
    left -= 1
    if left == 0:
        os.truncate(file, os.fstat(file).st_size - 5)
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
while trials.propose() is not None:
    pass
"""


@pytest.mark.parametrize("write", [1, 2])
def test_a_sweep_killed_in_the_middle_of_a_write_loses_nothing_before_it(
    trials: Open, python: Callable[..., subprocess.Popen[str]], write: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"chrono.gamma": "interval(0,0.8)"}
    undisturbed = draw_all(trials(params, where="undisturbed"))
    monkeypatch.setattr(trials_module, "GRACE_SECONDS", 3)
    process = python("-c", KILL_IN_WRITE, str(write))
    assert process.wait(timeout=60) == -9
    first = [draw.overrides for draw in trials(params).drawn()]
    assert first == undisturbed[: len(first)]
    assert first
    draw_all(trials(params))
    assert [draw.overrides for draw in trials(params).drawn()] == undisturbed


def test_a_storage_that_holds_another_sweep_of_this_name_is_refused(trials: Open, tmp_path: Path) -> None:
    storage = str(tmp_path / "shared.log")
    trials(storage=storage, shared={"optim.lr": 1.0}).propose()
    with pytest.raises(InputError, match=r"sweep.storage=\S+ holds another sweep: optim.lr was 1.0 and is 2.0"):
        trials(where="b", storage=storage, shared={"optim.lr": 2.0})
    trials(where="b", storage=storage, shared={"optim.lr": 2.0}, name="s-other")  # a name that only begins alike


def unusable(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "text.log").write_text("no journal\n")
    return {
        "a_folder": str(tmp_path),
        "no_journal": str(tmp_path / "text.log"),
        "beneath_a_file": str(tmp_path / "text.log" / "study.log"),
        "no_such_database": "sqlite:////nowhere/x.db",
        "no_such_kind": "foo://x",
        "no_driver": "mysql://a@b/c",
    }


@pytest.mark.parametrize(
    "kind", ["a_folder", "no_journal", "beneath_a_file", "no_such_database", "no_such_kind", "no_driver"]
)
def test_a_storage_that_cannot_be_used_is_refused_in_one_line(
    trials: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = unusable(tmp_path)[kind]
    monkeypatch.setattr(trials_module, "TABLES_SECONDS", 0.0)
    with pytest.raises(InputError) as refused:
        trials(storage=place)
    assert str(refused.value).startswith(f"sweep.storage={place} cannot be used (")
    assert "restore it, or name another" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_grid_that_gains_values_has_a_study_beside_the_old_one(trials: Open, point: Callable[..., Point]) -> None:
    """Optuna allows one set of values an axis and study."""
    before = trials(GRID, sampler="grid", trials=None)
    before.tell(before.begin(point("0")), DONE, {"val_loss": 1.0})
    after = trials({"chrono.gamma": "0,0.1,0.2,0.4"}, sampler="grid", trials=None)
    assert after.results() == {}
    after.tell(after.begin(point("0.4")), DONE, {"val_loss": 1.0})
    assert trials(GRID, sampler="grid", trials=None).results() == {point("0").hash: DONE}


def test_what_was_given_is_marked(trials: Open, point: Callable[..., Point]) -> None:
    study = trials(GRID, sampler="grid", trials=None)
    study.begin(point("0"))
    assert study.study.trials[0].user_attrs[AGAIN] is True
