"""The loop of a sweep: what is finished is skipped, what failed is tried again, what was interrupted goes on, and one
point's end never touches another's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from sweep_runs import SweepFolder
from training_runs import Finished, Outcome, differences

from chronomoe.sweep import engine as engine_module
from chronomoe.sweep import worker as worker_module
from chronomoe.sweep.engine import Engine
from chronomoe.sweep.state import lock_of
from chronomoe.sweep.trials import Trials
from chronomoe.training.telemetry import Telemetry

Sweep = Callable[..., Outcome]
GRID = ("chrono.gamma=0,0.2", "seed=1,2", "sweep.arms=['chrono=off']")
SEARCH = ("chrono.gamma=interval(0,0.8)", "chrono.pressure_scale=tag(log,interval(0.01,1))", "sweep.sampler=random")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the points that were trained in this process, in order."""
    import chronomoe.run

    names: list[str] = []
    original = chronomoe.run.run

    def run(config: Any, run_dir: Path) -> Any:
        names.append(config.sweep.point)
        return original(config, run_dir)

    monkeypatch.setattr(chronomoe.run, "run", run)
    return names


def at_step(monkeypatch: pytest.MonkeyPatch, point: int, step: int, do: Callable[[Path], Any]) -> None:
    """Do something once, in the point-th point that is trained, while that step is logged."""
    original, seen = Telemetry._log_row, []

    def log_row(self: Telemetry, trainer: Any, module: Any, now: int) -> None:
        original(self, trainer, module, now)
        run_dir = Path(trainer.default_root_dir)
        if run_dir not in seen:
            seen.append(run_dir)
        if now == step and len(seen) == point:
            seen.append(Path())
            do(run_dir)

    monkeypatch.setattr(Telemetry, "_log_row", log_row)


def study(folder: SweepFolder) -> optuna.Study:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder.path / "study.log")))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def test_a_grid_trains_every_point_and_writes_it_down(sweep: Sweep, folder: SweepFolder, trained: list[str]) -> None:
    assert sweep(*GRID).code == 0
    names = [
        *("chrono=off seed=1", "chrono=off seed=2", "chrono.gamma=0 seed=1", "chrono.gamma=0 seed=2"),
        *("chrono.gamma=0.2 seed=1", "chrono.gamma=0.2 seed=2"),
    ]
    assert trained == folder.column("overrides") == names
    assert folder.column("status") == ["done"] * 6
    for name, run in folder.runs.items():
        row = next(row for row in folder.results if row["overrides"] == name)
        assert run.summary["config_hash"] == row["config_hash"] == run.directory.name
        for key, value in run.summary.items():
            if isinstance(value, int | float):
                assert float(row[key]) == value
    trials = study(folder).trials
    assert [trial.user_attrs["point"] for trial in trials] == names
    assert [trial.value for trial in trials] == [run.summary["val_loss"] for run in folder.runs.values()]
    assert sorted(path.name for path in (folder.path / "runs").iterdir()) == sorted(folder.column("config_hash"))


def test_a_point_is_the_run_that_train_py_would_make(
    sweep: Sweep, folder: SweepFolder, train: Callable[..., Finished]
) -> None:
    sweep("chrono.gamma=0,0.2")
    alone = train("chrono.gamma=0.2", into="alone")
    point = folder.runs["chrono.gamma=0.2"]
    assert point.rows == alone.rows
    assert differences(point.checkpoint()["state_dict"], alone.checkpoint()["state_dict"]) == []


def test_a_rerun_skips_what_is_finished(sweep: Sweep, folder: SweepFolder, trained: list[str]) -> None:
    sweep("seed=1,2")
    before = folder.results
    outcome = sweep("seed=1,2")
    assert outcome.code == 0
    assert "2 of 2 points had ended before" in outcome.stderr
    assert trained == ["seed=1", "seed=2"]
    assert folder.results == before
    assert len(study(folder).trials) == 2


def test_a_rerun_that_only_watches_otherwise_skips_too(sweep: Sweep, trained: list[str]) -> None:
    sweep("seed=1,2")
    sweep("seed=1,2", "trainer.log_every_steps=2", "sweep.restarts=5")
    assert trained == ["seed=1", "seed=2"]


def test_a_grid_that_grows_trains_only_what_is_new(sweep: Sweep, folder: SweepFolder, trained: list[str]) -> None:
    sweep("seed=1,2")
    assert sweep("seed=1,3,2").code == 0
    assert trained == ["seed=1", "seed=2", "seed=3"]
    assert folder.column("seed") == ["1", "3", "2"]
    assert folder.column("status") == ["done"] * 3


def test_a_failed_point_loses_nothing_else_and_is_tried_again(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("seed=1,2,3", "sweep.name=undisturbed")
    trained.clear()

    def fall_over(run_dir: Path) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patched:
        at_step(patched, point=2, step=3, do=fall_over)
        assert sweep("seed=1,2,3").code == 1
    assert folder.column("status") == ["done", "failed", "done"]
    assert folder.column("error") == ["", "MemoryError: no more", ""]
    assert trained == ["seed=1", "seed=2", "seed=3"]
    assert sweep("seed=1,2,3").code == 0
    assert trained == ["seed=1", "seed=2", "seed=3", "seed=2"]
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def assert_same(one: SweepFolder, other: SweepFolder) -> None:
    """The tables, without what depends on the clock, and every weight."""
    assert one.table == other.table
    assert differences(one.weights(), other.weights()) == []


@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_sweep_goes_on_from_its_checkpoints(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    sweep(*GRID, "sweep.name=undisturbed")
    trained.clear()
    with monkeypatch.context() as patched:
        at_step(patched, point=3, step=step, do=lambda _: os.kill(os.getpid(), signal.SIGINT))
        outcome = sweep(*GRID)
    assert outcome.code == 130
    assert "stopping 1 point(s)" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert folder.column("status") == ["done", "done", "stopped", "waiting", "waiting", "waiting"]
    assert folder.results[2]["error"] == ""
    stopped = Path(folder.results[2]["run_dir"])
    assert json.loads((stopped / "summary.json").read_text())["status"] == "stopped"
    assert Finished(stopped).checkpoint()["global_step"] == step
    assert sweep(*GRID).code == 0
    assert f"ckpt_path: {stopped / 'checkpoints' / 'last.ckpt'}" in (stopped / "config.yaml").read_text()
    assert len(trained) == 7
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def test_an_interrupted_sweep_keeps_the_errors_it_knew(
    sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ("optim.lr=2e-3,1e30", "optim.warmup_frac=0")
    assert sweep(*bad).code == 1
    error = folder.results[1]["error"]
    assert error
    monkeypatch.setattr(Engine, "_advance", lambda self: os.kill(os.getpid(), signal.SIGINT))
    assert sweep(*bad).code == 130
    assert [row["error"] for row in folder.results] == ["", error]


def test_a_point_that_another_sweep_works_on_is_waited_for(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here by a sweep that was killed: its worker goes on."""
    sweep("seed=1,2")
    run_dir = Path(folder.results[0]["run_dir"])
    summary = (run_dir / "summary.json").read_text()
    (run_dir / "summary.json").unlink()
    trained.clear()
    lock, looks = lock_of(run_dir), []
    lock.acquire()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (run_dir / "summary.json").write_text(summary)
            lock.release()

    monkeypatch.setattr(engine_module.time, "sleep", sleep)
    assert sweep("seed=1,2").code == 0
    assert len(looks) >= 3
    assert trained == []
    assert folder.column("status") == ["done", "done"]


@pytest.mark.parametrize("left", ["nothing", "a_failure"])
def test_what_another_sweep_leaves_is_taken_over(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    sweep("seed=1,2")
    run_dir = Path(folder.results[0]["run_dir"])
    shutil.rmtree(run_dir)
    trained.clear()
    lock = lock_of(run_dir)
    lock.acquire()

    def sleep(seconds: float) -> None:
        if lock.is_locked and left == "a_failure":
            run_dir.mkdir()
            (run_dir / "config.yaml").write_text("seed: 1\n")
            (run_dir / "summary.json").write_text('{"status": "failed", "error": "its machine burned down"}')
        lock.release()

    monkeypatch.setattr(engine_module.time, "sleep", sleep)
    outcome = sweep("seed=1,2")
    if left == "nothing":
        assert (outcome.code, trained, folder.column("status")) == (0, ["seed=1"], ["done", "done"])
    else:
        assert (outcome.code, trained, folder.column("status")) == (1, [], ["failed", "done"])
        assert folder.results[0]["error"] == "its machine burned down"


def test_a_point_that_another_sweep_just_failed_at_is_not_tried_again(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two sweeps in a folder would train each failing point twice."""

    def fail_elsewhere(run_dir: Path) -> None:
        waiting = next(Path(row["run_dir"]) for row in folder.results if row["seed"] == "2")
        waiting.mkdir(parents=True)
        (waiting / "config.yaml").write_text("seed: 2\n")
        (waiting / "summary.json").write_text('{"status": "failed", "error": "elsewhere"}')

    with monkeypatch.context() as patched:
        at_step(patched, point=1, step=2, do=fail_elsewhere)
        assert sweep("seed=1,2").code == 1
    assert trained == ["seed=1"]
    assert folder.column("error") == ["", "elsewhere"]
    assert sweep("seed=1,2").code == 0  # but by the next command


def test_a_folder_deleted_while_its_point_runs_is_trained_again(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("seed=1,2", "sweep.name=undisturbed")
    trained.clear()
    with monkeypatch.context() as patched:
        at_step(patched, point=1, step=4, do=shutil.rmtree)
        outcome = sweep("seed=1,2")
    assert outcome.code == 0, outcome.stderr
    assert "seed=1: its folder was deleted; it starts again" in outcome.stderr
    assert sorted(trained) == ["seed=1", "seed=1", "seed=2"]
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def test_a_folder_deleted_after_its_point_ended_is_trained_again(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep("seed=1,2", "sweep.name=undisturbed")
    trained.clear()

    def delete_the_first(run_dir: Path) -> None:
        shutil.rmtree(folder.results[0]["run_dir"])

    with monkeypatch.context() as patched:
        at_step(patched, point=2, step=4, do=delete_the_first)
        assert sweep("seed=1,2").code == 0
    assert trained == ["seed=1", "seed=2", "seed=1"]
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def test_a_worker_that_cannot_write_how_it_failed_is_tried_again_and_then_named(
    sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes no summary either."""

    def fall_over(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chronomoe.summary.write_summary", fall_over)
    outcome = sweep("seed=1,2", "sweep.restarts=1")
    assert outcome.code == 1
    assert folder.column("status") == ["failed", "failed"]
    assert folder.results[0]["error"].startswith("it failed and could not write down how (")
    assert folder.results[0]["error"].endswith(f", after 1 restart(s); see {folder.path / 'jobs'}")


def test_a_search_draws_its_points_and_writes_them_down(sweep: Sweep, folder: SweepFolder, trained: list[str]) -> None:
    assert sweep(*SEARCH, "sweep.trials=3", "sweep.objectives=[val_loss,max_vio_late]").code == 0
    assert trained == folder.column("overrides")
    assert len(set(trained)) == 3
    for row, trial in zip(folder.results, study(folder).trials, strict=True):
        assert (float(row["chrono.gamma"]), float(row["chrono.pressure_scale"])) == tuple(
            trial.params[key] for key in ("chrono.gamma", "chrono.pressure_scale")
        )
        assert trial.values == [float(row["val_loss"]), float(row["max_vio_late"])]
        assert trial.user_attrs["config_hash"] == row["config_hash"]


def test_an_interrupted_random_search_ends_as_an_undisturbed_one(
    sweep: Sweep, folder: SweepFolder, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = (*SEARCH, "sweep.trials=4")
    sweep(*search, "sweep.name=undisturbed")
    trained.clear()
    for point, step in ((2, 3), (1, 6)):
        with monkeypatch.context() as patched:
            at_step(patched, point=point, step=step, do=lambda _: os.kill(os.getpid(), signal.SIGINT))
            assert sweep(*search).code == 130
    assert sweep(*search).code == 0
    assert len(trained) == 6
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def test_a_search_that_draws_a_point_twice_trains_it_once_and_names_it_twice(
    sweep: Sweep, folder: SweepFolder, trained: list[str]
) -> None:
    search = ("chrono.gamma=0,0.2", "sweep.sampler=random", "sweep.trials=4")
    assert sweep(*search).code == 0
    assert sorted(set(trained)) == sorted(trained)
    before = folder.table
    assert len(before) == 4
    assert sweep(*search).code == 0
    assert folder.table == before


def test_a_search_goes_on_with_more_trials(sweep: Sweep, folder: SweepFolder, trained: list[str]) -> None:
    sweep(*SEARCH, "sweep.trials=2")
    first = folder.table
    sweep(*SEARCH, "sweep.trials=3")
    assert folder.table[:2] == first
    assert len(trained) == 3


def test_a_point_of_a_search_that_contradicts_itself_fails_alone(
    sweep: Sweep, folder: SweepFolder, trained: list[str]
) -> None:
    search = ("router.top_k=1,2,9", "sweep.sampler=random", "sweep.trials=6")
    assert sweep(*search).code == 1
    refused = [row for row in folder.results if row["router.top_k"] == "9"]
    assert refused
    for row in refused:
        assert (row["status"], row["error"]) == (
            "failed",
            "router.top_k=9: router.top_k=9 exceeds model.num_experts=4: lower the first",
        )
    assert {row["status"] for row in folder.results if row not in refused} == {"done"}
    before = folder.table
    assert sweep(*search).code == 1
    assert folder.table == before
    assert not (folder.path / "runs" / "refused").exists()


def test_points_of_another_sweep_in_the_storage_are_in_the_table(
    sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sweeps that search one folder, each of which draws some of the points."""
    search = (*SEARCH, "sweep.trials=3")
    sweep(*search, "sweep.name=undisturbed")
    original, others = Trials.propose, []

    def propose(self: Trials) -> Any:
        if not others:
            others.append(original(self))  # the other sweep is first, and dies
        return original(self)

    monkeypatch.setattr(Trials, "propose", propose)
    assert sweep(*search).code == 0
    assert_same(folder, SweepFolder(folder.path.with_name("undisturbed")))


def test_a_front_is_found_by_tpe(sweep: Sweep, folder: SweepFolder) -> None:
    search = ("chrono.gamma=interval(0,0.8)", "sweep.sampler=tpe", "sweep.trials=3")
    assert sweep(*search, "sweep.objectives=[val_loss,load_entropy]").code == 0
    assert [direction.name for direction in study(folder).directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study(folder).best_trials


def test_a_database_holds_the_study_as_well(
    sweep: Sweep, folder: SweepFolder, tmp_path: Path, trained: list[str]
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    search = (*SEARCH, "sweep.trials=2", f"sweep.storage={storage}")
    assert sweep(*search).code == 0
    assert sweep(*search).code == 0
    assert len(trained) == 2
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert [trial.value for trial in trials] == [float(value) for value in folder.column("val_loss")]
    assert not (folder.path / "study.log").exists()


def test_work_is_sent_off_for_its_point(sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[worker_module.Work] = []
    monkeypatch.setattr(worker_module.Work, "train", lambda self: sent.append(self) or "failed")
    assert sweep("seed=1,2", "sweep.restarts=0").code == 1
    assert [Path(work.run_dir) for work in sent] == [Path(row["run_dir"]) for row in folder.results]
    assert [work.own_process for work in sent] == [False, False]
