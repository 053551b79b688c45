"""Sweeps whose workers, parents, disks and folders are taken from them: nothing finished is lost, every fault is a
clear line, and the final table is that of an undisturbed sweep."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from sweep_runs import FakeSlurm, SweepFolder, finish, wait_until
from training_runs import Finished, Outcome, differences

from chronomoe.sweep import engine as engine_module
from chronomoe.sweep import trials as trials_module
from chronomoe.sweep.state import is_locked

Start = Callable[..., subprocess.Popen[str]]
Sweep = Callable[..., Outcome]

LONG = ("trainer.max_steps=80", "trainer.checkpoint_every_steps=5", "trainer.eval_every_steps=40")
PAIR = ("seed=1,2", *LONG)
TRIPLE = ("chrono.gamma=0,0.2,0.4", *LONG)
SEARCH = ("chrono.gamma=interval(0,0.8)", "sweep.sampler=random", "sweep.trials=3", *LONG)
LOCAL = ("launcher=local", "launcher.jobs=2")


def assert_same(one: SweepFolder, other: SweepFolder) -> None:
    """The tables, without what depends on the clock, and every weight."""
    assert one.table == other.table
    assert differences(one.weights(), other.weights()) == []


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, ...], SweepFolder]]:
    """Where undisturbed sweeps lie, and those there are."""
    return tmp_path_factory.mktemp("undisturbed"), {}


@pytest.fixture
def undisturbed(sweep: Sweep, known: Any) -> Callable[..., SweepFolder]:
    """undisturbed(*arguments): the same sweep, one point after another in this process, once for all tests."""
    place, folders = known

    def undisturbed(*arguments: str) -> SweepFolder:
        if arguments not in folders:
            name = f"undisturbed{len(folders)}"
            assert sweep(*arguments, f"sweep.name={name}", f"sweep.dir={place}").code == 0
            folders[arguments] = SweepFolder(place / name)
        return folders[arguments]

    return undisturbed


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch, undrawn_processes: str) -> Callable[..., list[Any]]:
    """meanwhile(condition, do): once, while the sweep in this process waits for its workers; a list of one when it was
    done."""

    def meanwhile(condition: Callable[[], Any], do: Callable[[], Any]) -> list[Any]:
        done: list[Any] = []
        sleep = engine_module.time.sleep

        def look(seconds: float) -> None:
            if not done and condition():
                done.append(do())
            sleep(seconds)

        monkeypatch.setattr(engine_module.time, "sleep", look)
        return done

    return meanwhile


def steps(run_dir: Path) -> int:
    """Logged so far."""
    with suppress(OSError):
        return (run_dir / "metrics.csv").read_text().count("\n")
    return 0


def at_work(folder: SweepFolder, after: int = 0) -> list[Path]:
    """Run directories of the points that are being trained, and that many steps far."""
    return [path for path in (folder.path / "runs").glob("*") if is_locked(path) and steps(path) > after]


def workers(folder: SweepFolder) -> list[int]:
    """The processes that train this sweep's points."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            if "submitit.core._submit" in words and any(word.startswith(str(folder.path / "jobs")) for word in words):
                found.append(int(process.name))
    return found


def kill(pids: list[int]) -> list[int]:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def trainings(folder: SweepFolder) -> int:
    """How often a training was begun in a process of its own."""
    logs = [path.read_text(errors="replace") for path in (folder.path / "jobs").glob("*/*_log.err")]
    return sum(len(re.findall(r"^control: ", log, flags=re.MULTILINE)) for log in logs)


@pytest.fixture(autouse=True)
def no_worker_is_left(folder: SweepFolder) -> Any:
    yield
    kill(workers(folder))


SHARED = {
    "grid_and_journal": (TRIPLE, "{}/study.log"),
    "search_and_database": (SEARCH, "sqlite:///{}/study.db"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "storage"), SHARED.values(), ids=SHARED.keys())
def test_two_sweeps_of_one_folder_and_storage_divide_the_work(
    start: Start, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, tmp_path: Path, what: Any, storage: str
) -> None:
    both = [start(*what, "launcher=debug", f"sweep.storage={storage.format(tmp_path)}") for _ in range(2)]
    outcomes = [finish(process) for process in both]
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    trained = [len(re.findall(r"^control: ", outcome.stderr, flags=re.MULTILINE)) for outcome in outcomes]
    assert sum(trained) == len(folder.results)
    assert min(trained) >= 1
    assert_same(folder, undisturbed(*what))


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on_from_its_checkpoint(
    sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, meanwhile: Callable[..., list[Any]]
) -> None:
    killed = meanwhile(lambda: at_work(folder, after=25), lambda: kill(workers(folder)[:1]))
    outcome = sweep(*PAIR, *LOCAL)
    assert (outcome.code, len(killed)) == (0, 1), outcome
    assert re.search(r"seed=\d: its process died \(.+\); it goes on from its checkpoint", outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert_same(folder, undisturbed(*PAIR))


@pytest.mark.slow
def test_a_worker_that_dies_too_often_fails_and_takes_nothing_with_it(
    sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, meanwhile: Callable[..., list[Any]]
) -> None:
    meanwhile(lambda: at_work(folder), lambda: kill(workers(folder)))
    outcome = sweep(*PAIR, "launcher=local", "sweep.restarts=0")
    assert outcome.code == 1, outcome
    assert folder.column("status") == ["failed", "done"]
    assert re.fullmatch(
        rf"its process died \(.+\), after 0 restart\(s\); see {folder.path / 'jobs'}", folder.results[0]["error"]
    )
    assert "Traceback" not in outcome.stderr
    assert sweep(*PAIR).code == 0
    assert_same(folder, undisturbed(*PAIR))


@pytest.mark.slow
def test_points_of_a_killed_sweep_go_on_and_the_next_sweep_waits_for_them(
    start: Start, sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder
) -> None:
    process = start(*PAIR, *LOCAL)
    wait_until(lambda: len(at_work(folder)) == 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    assert len(at_work(folder)) == 2
    outcome = sweep(*PAIR)
    assert outcome.code == 0, outcome
    assert "control: " not in outcome.stderr
    assert trainings(folder) == 2
    assert_same(folder, undisturbed(*PAIR))


@pytest.mark.slow
def test_ctrl_c_saves_every_state_and_the_same_command_goes_on(
    start: Start, sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder
) -> None:
    """Sent to the whole process group, as a terminal does."""
    process = start(*TRIPLE, *LOCAL)
    wait_until(lambda: len(at_work(folder, after=15)) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    outcome = finish(process)
    assert outcome.code == 130, outcome
    assert "Traceback" not in outcome.stderr
    assert workers(folder) == []
    assert folder.column("status") == ["stopped", "stopped", "waiting"]
    for row in folder.results[:2]:
        run = Finished(Path(row["run_dir"]))
        assert 15 <= run.checkpoint()["global_step"] == len(run.column("train/loss")) < 80
    assert sweep(*TRIPLE).code == 0
    assert_same(folder, undisturbed(*TRIPLE))


@pytest.mark.slow
def test_a_point_that_falls_behind_is_stopped_and_stays_so(
    sweep: Sweep, folder: SweepFolder, undrawn_processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials_module, "build_pruner", lambda kind: optuna.pruners.ThresholdPruner(upper=0.0))
    monkeypatch.setattr(engine_module, "WATCH_SECONDS", 0.05)
    endless = ("trainer.max_steps=100000", "trainer.eval_every_steps=5", "sweep.trials=1", "sweep.pruner=median")
    search = ("chrono.gamma=interval(0,0.8)", "sweep.sampler=random", *endless)
    outcome = sweep(*search, "launcher=local")
    assert outcome.code == 0, outcome
    assert folder.column("status") == ["pruned"]
    before = folder.results
    again = sweep(*search, "launcher=local")
    assert again.code == 0
    assert "1 of 1 points had ended before" in again.stderr
    assert trainings(folder) == 1
    assert [row["status"] for row in before] == folder.column("status")


DISTURBANCES = ("kill a worker", "kill the sweep", "interrupt the sweep", "delete a folder")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_sweep_disturbed_at_random_ends_as_an_undisturbed_one(
    start: Start, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, seed: int
) -> None:
    rng, what, happened = random.Random(seed), (TRIPLE, SEARCH)[seed], []
    process = start(*what, *LOCAL, "sweep.restarts=9")
    for disturbance in rng.sample(DISTURBANCES, k=len(DISTURBANCES)):
        after = rng.randrange(0, 60)
        with suppress(AssertionError):  # it may have ended by itself
            wait_until(lambda after=after: at_work(folder, after), process, seconds=30)
        if process.poll() is None:
            happened.append(disturb(disturbance, process, folder, rng))
        if process.poll() is not None:
            process = start(*what, *LOCAL, "sweep.restarts=9")
    outcome = finish(process)
    assert outcome.code == 0, (happened, outcome)
    assert len(happened) >= 2
    assert "Traceback" not in outcome.stderr
    assert_same(folder, undisturbed(*what))


def disturb(what: str, process: subprocess.Popen[str], folder: SweepFolder, rng: random.Random) -> str:
    if what == "kill a worker":
        kill(workers(folder)[:1])
    elif what == "delete a folder":
        for run_dir in rng.sample(sorted((folder.path / "runs").glob("*")), k=1):
            shutil.rmtree(run_dir, ignore_errors=True)
    elif what == "kill the sweep":
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)
    else:
        os.killpg(process.pid, signal.SIGINT)
        outcome = finish(process)
        assert outcome.code == 130, outcome
        assert "Traceback" not in outcome.stderr
    return what


def test_a_disk_too_small_for_checkpoints_is_in_the_table_and_makes_room_for_a_second_try(
    sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder
) -> None:
    expected = undisturbed("seed=1,2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        outcome = sweep("seed=1,2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 1
    assert folder.column("status") == ["failed", "failed"]
    for error in folder.column("error"):
        assert re.match(r"could not save .*\.ckpt: (File too large|the write failed, the disk may be full)", error)
    assert sweep("seed=1,2").code == 0
    assert_same(folder, expected)


def test_a_disk_too_small_for_the_table_is_one_line_and_loses_nothing(
    sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = undisturbed("seed=1,2")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = engine_module.write_results

    def write_results(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            original(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patched:
        patched.setattr(engine_module, "write_results", write_results)
        outcome = sweep("seed=1,2")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1].endswith("File too large; make room, then the same command goes on")
    assert not list(folder.path.glob(".*"))
    assert sweep("seed=1,2").code == 0
    assert_same(folder, expected)


@pytest.mark.slow
def test_slurm_runs_the_same_command_to_the_same_results(
    sweep: Sweep, undisturbed: Callable[..., SweepFolder], folder: SweepFolder, slurm: FakeSlurm
) -> None:
    expected = undisturbed("seed=1,2")
    wanted = ("launcher.partition=cpu", "launcher.cpus_per_task=1", "launcher.setup=['export LOADED=yes']")
    outcome = sweep("seed=1,2", "launcher=slurm", *wanted)
    assert outcome.code == 0, outcome
    assert [slurm.directives(job)["partition"] for job in range(2)] == ["cpu", "cpu"]
    assert all("export LOADED=yes" in script for script in slurm.scripts())
    assert trainings(folder) == 2
    assert_same(folder, expected)


@pytest.mark.slow
def test_a_preempted_slurm_job_is_queued_again_and_goes_on_from_its_checkpoint(
    sweep: Sweep,
    undisturbed: Callable[..., SweepFolder],
    folder: SweepFolder,
    slurm: FakeSlurm,
    meanwhile: Callable[..., list[Any]],
) -> None:
    expected = undisturbed(*PAIR)
    preempted = meanwhile(lambda: at_work(folder, after=25), lambda: os.kill(slurm.pids()[0], signal.SIGUSR2))
    outcome = sweep(*PAIR, "launcher=slurm", "launcher.jobs=1")
    assert outcome.code == 0, outcome
    assert len(preempted) == 1
    assert len(slurm.scripts()) == 2  # no third job was sent off
    assert trainings(folder) == 3
    assert_same(folder, expected)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_slurm_job_of_two_processes_is_one_run(
    sweep: Sweep, folder: SweepFolder, slurm: FakeSlurm, train: Callable[..., Finished]
) -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    outcome = sweep("seed=1,2", *two, "launcher=slurm", "launcher.jobs=1")
    assert outcome.code == 0, outcome
    assert slurm.directives()["ntasks-per-node"] == "2"
    alone = train("seed=2", *two, into="alone")
    assert differences(folder.runs["seed=2"].checkpoint()["state_dict"], alone.checkpoint()["state_dict"]) == []
