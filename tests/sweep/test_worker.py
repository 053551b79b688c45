"""What a job does with a point: it never trains what is done, goes on where it can, and says how it ended."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Finished, differences

from chronomoe.config import write_yaml
from chronomoe.settings import Stopped
from chronomoe.sweep.state import DONE, FAILED, RUNNING, STOPPED, lock_of, read_state
from chronomoe.sweep.worker import Work, can_go_on
from chronomoe.training.telemetry import Telemetry

OFTEN = ("trainer.max_steps=12", "trainer.checkpoint_every_steps=3")


@pytest.fixture
def work(
    configure: Callable[..., Any], tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Work]:
    """work(*overrides, into=…): of the tiny run, in this process."""
    monkeypatch.chdir(tmp_path)

    def work(*overrides: str, into: str = "abc") -> Work:
        config = write_yaml(configure(*overrides))
        return Work(run_dir=str(tmp_path / "runs" / into), config=config, threads=None, own_process=False)

    return work


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """at_step(step, do): once, while that optimizer step is logged."""

    def at_step(step: int, do: Callable[[], Any]) -> None:
        original = Telemetry._log_row

        def log_row(self: Telemetry, trainer: Any, module: Any, now: int) -> None:
            original(self, trainer, module, now)
            if now == step:
                monkeypatch.setattr(Telemetry, "_log_row", original)
                do()

        monkeypatch.setattr(Telemetry, "_log_row", log_row)

    return at_step


def fall_over() -> None:
    raise OSError(28, "No space left on device")


def assert_same(one: Path, other: Path) -> None:
    a, b = Finished(one), Finished(other)
    assert differences(a.checkpoint()["state_dict"], b.checkpoint()["state_dict"]) == []
    assert a.rows == b.rows
    assert a.routing.keys() == b.routing.keys()


def test_a_point_is_trained_once(work: Callable[..., Work]) -> None:
    one = work()
    assert one() == DONE
    written = {path: path.stat().st_mtime_ns for path in Path(one.run_dir).rglob("*") if path.is_file()}
    assert one() == DONE
    assert written == {path: path.stat().st_mtime_ns for path in Path(one.run_dir).rglob("*") if path.is_file()}


def test_a_point_that_another_process_works_on_is_left_alone(work: Callable[..., Work]) -> None:
    one = work()
    with lock_of(Path(one.run_dir)):
        assert one() == RUNNING
    assert not Path(one.run_dir).exists()


def test_a_look_at_the_lock_does_not_keep_a_worker_out(work: Callable[..., Work]) -> None:
    """A sweep that asks who works on a point holds its lock for a moment."""
    one = work()
    held = threading.Event()

    def look() -> None:
        with lock_of(Path(one.run_dir)):
            held.set()
            time.sleep(0.2)

    looking = threading.Thread(target=look)
    looking.start()
    held.wait(10)
    assert one() == DONE
    looking.join()


def test_a_point_that_fails_says_why_and_frees_its_lock(
    work: Callable[..., Work], capfd: pytest.CaptureFixture[str]
) -> None:
    one = work("optim.lr=1e30", "optim.warmup_frac=0")
    assert one() == FAILED
    state = read_state(Path(one.run_dir))
    assert state.status == FAILED
    assert state.error is not None
    assert "not finite" in state.error or "nan" in state.error or "inf" in state.error
    assert "Traceback" in capfd.readouterr().err  # for the job's log


def test_a_failed_point_goes_on_from_its_checkpoint_to_the_same_end(
    work: Callable[..., Work], at_step: Callable[..., None]
) -> None:
    at_step(8, fall_over)
    assert work(*OFTEN)() == FAILED
    saved = torch.load(Path(work().run_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert work(*OFTEN)() == DONE
    assert work(*OFTEN, into="whole")() == DONE
    assert_same(Path(work().run_dir), Path(work(into="whole").run_dir))


def test_a_point_stopped_in_this_process_stops_the_sweep_with_its_state_saved(
    work: Callable[..., Work], at_step: Callable[..., None]
) -> None:
    at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Stopped):
        work(*OFTEN)()
    assert read_state(Path(work().run_dir)).status == STOPPED
    assert can_go_on(Path(work().run_dir), 12)
    assert work(*OFTEN)() == DONE
    work(*OFTEN, into="whole")()
    assert_same(Path(work().run_dir), Path(work(into="whole").run_dir))


def test_a_point_asked_to_stop_while_it_draws_its_pictures_stays_done(
    work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is trained and written; the pictures can be drawn at any time."""

    def stop(run: Any) -> None:
        raise Stopped

    monkeypatch.setattr("chronomoe.study.figures.draw_run", stop)
    with pytest.raises(Stopped):
        work()()
    assert read_state(Path(work().run_dir)).status == DONE


def test_a_preempted_point_counts_as_stopped_not_as_failed(
    work: Callable[..., Work], at_step: Callable[..., None]
) -> None:
    """submitit leaves by sys.exit when it has queued a job again; another sweep may look meanwhile."""
    at_step(8, lambda: sys.exit(-1))
    with pytest.raises(SystemExit):
        work(*OFTEN)()
    assert read_state(Path(work().run_dir)).status == STOPPED
    assert work(*OFTEN)() == DONE
    work(*OFTEN, into="whole")()
    assert_same(Path(work().run_dir), Path(work(into="whole").run_dir))


def test_a_run_killed_before_its_last_evaluation_is_trained_again(work: Callable[..., Work]) -> None:
    """Its checkpoint has no steps left, and its summary was never written."""
    one = work(*OFTEN)
    one()
    (Path(one.run_dir) / "summary.json").unlink()
    assert not can_go_on(Path(one.run_dir), 12)
    assert one() == DONE
    work(*OFTEN, into="whole")()
    assert_same(Path(one.run_dir), Path(work(into="whole").run_dir))


def test_a_broken_checkpoint_is_not_gone_on_from(work: Callable[..., Work]) -> None:
    one = work(*OFTEN)
    checkpoints = Path(one.run_dir) / "checkpoints"
    checkpoints.mkdir(parents=True)
    (Path(one.run_dir) / "config.yaml").write_text(one.config)
    (checkpoints / "last.ckpt").write_bytes(b"PK\x03\x04 torn")
    assert not can_go_on(Path(one.run_dir), 12)
    assert one() == DONE


def test_remains_of_a_deleted_folder_are_cleared_away(work: Callable[..., Work]) -> None:
    """A run whose folder is deleted while it goes on makes parts of it anew."""
    one = work(*OFTEN)
    one()
    for name in ("config.yaml", "metrics.csv"):
        (Path(one.run_dir) / name).unlink()
    assert one() == DONE
    work(*OFTEN, into="whole")()
    assert_same(Path(one.run_dir), Path(work(into="whole").run_dir))


def test_further_processes_of_a_run_take_no_lock(work: Callable[..., Work], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    one, trained = work(), []
    monkeypatch.setattr(Work, "train", lambda self: trained.append(self.run_dir) or DONE)
    with lock_of(Path(one.run_dir)):
        assert one() == DONE
    assert trained == [one.run_dir]


def test_work_travels_to_another_process(work: Callable[..., Work]) -> None:
    one = work("seed=5")
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_preempted_job_is_the_same_work_again(work: Callable[..., Work]) -> None:
    one = work()
    again = one.checkpoint()
    assert (again.function, again.args, again.kwargs) == (one, (), {})


SET_UP = """
import os, sys
from chronomoe.sweep.worker import set_up_process
assert "torch" not in sys.modules
set_up_process(int(sys.argv[1]))
import torch
print(torch.get_num_threads(), os.getpgid(0) == os.getpid())
"""


@pytest.mark.parametrize("is_session", [False, True])
@pytest.mark.parametrize(("chosen", "threads"), [(None, "1"), ("2", "2")])
def test_a_workers_process_has_its_share_of_threads_and_a_group_of_its_own(
    python: Callable[..., subprocess.Popen[str]], chosen: str | None, threads: str, is_session: bool
) -> None:
    """Unless the environment says otherwise."""
    setting = "" if chosen is None else f"os.environ['OMP_NUM_THREADS'] = '{chosen}'"
    process = python(
        "-c", f"import os\ndel os.environ['OMP_NUM_THREADS']\n{setting}\n{SET_UP}", "1", start_new_session=is_session
    )
    output, errors = process.communicate(timeout=60)
    assert output.split() == [threads, "True"], errors
