"""Jobs: each with devices of its own, here or on SLURM, and always with an ending that can be read."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from sweep_runs import FakeSlurm, wait_until

from chronomoe.settings import InputError, RunFailed
from chronomoe.sweep import launcher as launcher_module
from chronomoe.sweep.launcher import Job, Launcher, share_out, visible_gpus
from chronomoe.sweep.settings import LauncherSettings

Make = Callable[..., Launcher]


@pytest.fixture
def launcher(tmp_path: Path, configure: Callable[..., Any]) -> Make:
    """launcher(kind, …settings, overrides=…)"""

    def launcher(kind: str, overrides: tuple[str, ...] = (), **settings: Any) -> Launcher:
        chosen = LauncherSettings(**{"kind": kind, "jobs": 1, **settings})
        return Launcher(chosen, tmp_path / "jobs", configure(*overrides))

    return launcher


def ending(job: Job, seconds: float = 30.0) -> str | None:
    wait_until(job.is_over, seconds=seconds)
    return job.ending()


def environment(name: str) -> Callable[[], str]:
    """A job that returns a variable of its environment."""

    def read() -> str:
        import os

        return str(os.environ.get(name))

    return read


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int, visible: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_local_jobs_at_one_time_see_different_gpus(launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4, visible="3,5,6,7")
    three = launcher("local", ("trainer=auto", "trainer.accelerator=auto"), jobs=3)
    jobs = [three.submit(environment("CUDA_VISIBLE_DEVICES")) for _ in range(3)]
    assert [ending(job) for job in jobs] == ["3", "5", "6"]
    three.release(jobs[1])
    assert ending(three.submit(environment("CUDA_VISIBLE_DEVICES"))) == "5"


def test_a_job_of_two_gpus_gets_two(launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4)
    overrides = ("trainer=ddp", "trainer.accelerator=cuda", "trainer.devices=2")
    both = launcher("local", overrides, jobs=2)
    assert [ending(both.submit(environment("CUDA_VISIBLE_DEVICES"))) for _ in range(2)] == ["0,1", "2,3"]


def test_jobs_on_the_cpu_see_no_gpu(launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4)
    assert ending(launcher("local", ("trainer=cpu",)).submit(environment("CUDA_VISIBLE_DEVICES"))) == ""


def test_more_jobs_than_gpus_are_refused_with_how_many_fit(launcher: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4)
    overrides = ("trainer=ddp", "trainer.accelerator=cuda", "trainer.devices=2")
    with pytest.raises(InputError, match=r"launcher.jobs=3 x trainer.devices=2 need 6 GPUs and there are 4.*jobs=2"):
        launcher("local", overrides, jobs=3)


def test_gpus_are_shared_out_without_remainder_or_overlap() -> None:
    assert share_out([4, 5, 6, 7, 8], devices=2, jobs=2) == [[4, 5], [6, 7]]


@pytest.mark.parametrize(("variable", "gpus"), [(None, [0, 1, 2]), ("2, 0", [2, 0]), ("", [])])
def test_the_gpus_are_those_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, gpus: list[int]
) -> None:
    with_gpus(monkeypatch, 3, visible=variable)
    assert visible_gpus() == gpus


def test_gpus_without_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 1, visible="GPU-5f2c")
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=GPU-5f2c: .*list numbers, or unset it"):
        visible_gpus()


@pytest.mark.parametrize(("jobs", "devices", "threads"), [(1, 1, 8), (3, 1, 2), (2, 2, 2), (20, 1, 1)])
def test_local_jobs_share_the_cores(
    launcher: Make, monkeypatch: pytest.MonkeyPatch, jobs: int, devices: int, threads: int
) -> None:
    monkeypatch.setattr(launcher_module, "processor_cores", lambda: 8)
    overrides = ("trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}") if devices > 1 else ()
    assert launcher("local", overrides, jobs=jobs).threads == threads


def test_other_jobs_have_their_threads_from_elsewhere(launcher: Make, slurm: FakeSlurm) -> None:
    assert launcher("debug").threads is None
    assert launcher("slurm").threads is None


def die() -> None:
    import os
    import signal
    import sys

    print("step 1\n  99%|####| 9/10\rOSError: no more\n  50%|##  | 5/10", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise RuntimeError("no more")


def by_value(function: Callable[[], Any]) -> Callable[[], Any]:
    """The same as a job that a process can unpickle without finding this file."""
    module = sys.modules[function.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        pickled = cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    return lambda: pickle.loads(pickled)()


def test_a_job_that_was_killed_has_no_ending_but_last_words(launcher: Make) -> None:
    job = launcher("local").submit(by_value(die))
    assert ending(job) is None
    assert job.last_words() == "OSError: no more"


def test_a_job_that_broke_has_no_ending_but_last_words(launcher: Make) -> None:
    job = launcher("local").submit(by_value(fail))
    assert ending(job) is None
    assert "no more" in job.last_words()


def test_a_job_without_a_log_has_no_last_words(launcher: Make) -> None:
    job = launcher("local").submit(lambda: "done")
    assert ending(job) == "done"
    job._job.paths.stderr.unlink()
    assert job.last_words() == ""


def wait_for_the_end(folder: str) -> Callable[[], str]:
    """A job that says it is there, and ends when it is asked to."""

    def wait() -> str:
        import signal
        from pathlib import Path

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        (Path(folder) / "there").touch()
        got = signal.sigtimedwait([signal.SIGTERM], 30)
        return "asked" if got else "waited in vain"

    return wait


@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_job_that_is_stopped_is_asked_to_end(launcher: Make, tmp_path: Path, slurm: FakeSlurm, kind: str) -> None:
    job = launcher(kind, ("trainer=cpu",)).submit(wait_for_the_end(str(tmp_path)))
    wait_until((tmp_path / "there").exists)
    assert not job.is_over()
    job.stop()
    assert ending(job) == "asked"
    job.stop()  # over already


def test_a_terminals_interrupt_does_not_reach_what_starts_the_workers(launcher: Make, tmp_path: Path) -> None:
    """submitit's controller would give its worker a second to save a model."""
    job = launcher("local").submit(wait_for_the_end(str(tmp_path)))
    wait_until((tmp_path / "there").exists)
    os.kill(int(job._job.job_id), signal.SIGINT)
    job.stop()
    assert ending(job) == "asked"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SETTINGS = {
    "partition": "gpu", "account": "lab", "qos": "high", "constraint": "a100", "cpus_per_task": 6, "mem_gb": 48.0,
    "timeout_hours": 2.5, "setup": ["module load python/3.11", "ulimit -n 4096"],
}  # fmt: skip


def test_a_batch_script_asks_for_what_was_set(launcher: Make, slurm: FakeSlurm) -> None:
    overrides = ("trainer=ddp", "trainer.accelerator=cuda", "trainer.devices=2", "trainer.num_nodes=2")
    big = launcher("slurm", overrides, jobs=64, **SETTINGS)
    (slurm.path / "busy").touch()
    big.submit(lambda: "done")
    asked = slurm.directives()
    expected = {
        "partition": "gpu", "account": "lab", "qos": "high", "constraint": "a100", "cpus-per-task": "6",
        "mem": "48GB", "time": "150", "nodes": "2", "ntasks-per-node": "2", "gpus-per-node": "2", "signal": "USR2@90",
        "open-mode": "append", "job-name": f"chronomoe-{os.getpid()}",
    }  # fmt: skip
    assert {key: asked.get(key) for key in expected} == expected
    lines = slurm.scripts()[0].splitlines()
    command = next(number for number, line in enumerate(lines) if line.startswith("srun "))
    assert lines.index("module load python/3.11") < lines.index("ulimit -n 4096") < command
    assert "submitit.core._submit" in lines[command]


def test_a_job_on_the_cpu_asks_for_no_gpu_and_for_nothing_that_was_not_set(launcher: Make, slurm: FakeSlurm) -> None:
    (slurm.path / "busy").touch()
    launcher("slurm", ("trainer=cpu",)).submit(lambda: "done")
    asked = slurm.directives()
    assert asked["time"] == str(24 * 60)
    for key in ("gpus-per-node", "partition", "account", "qos", "constraint", "cpus-per-task", "mem"):
        assert key not in asked


def test_a_slurm_job_of_two_processes_ends_as_its_first(launcher: Make, slurm: FakeSlurm) -> None:
    overrides = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    job = launcher("slurm", overrides).submit(environment("SLURM_PROCID"))
    assert ending(job) == "0"
    assert slurm.directives()["ntasks-per-node"] == "2"


def test_a_slurm_job_that_waits_is_over_soon_after_it_is_cancelled(
    launcher: Make, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """submitit asks for the state of a job ever more rarely, at last every ten minutes."""
    (slurm.path / "busy").touch()
    job = launcher("slurm", ("trainer=cpu",)).submit(lambda: "done")
    assert not job.is_over()
    begin, clock = time.time(), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)  # it has waited for an hour
    assert not job.is_over()
    monkeypatch.setattr(time, "time", lambda: clock() + 3610)
    job.stop()
    assert (slurm.path / "scancel.log").read_text().split() == [job._job.job_id]
    wait_until(job.is_over, seconds=5)
    assert job.ending() is None
    assert clock() - begin < 30


def test_without_slurm_there_is_one_clear_line(launcher: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"launcher=slurm: there is no SLURM here .*srun.*; use launcher=local"):
        launcher("slurm")
    assert not (tmp_path / "jobs").exists()


def test_a_job_that_sbatch_refuses_is_one_clear_line(launcher: Make, slurm: FakeSlurm) -> None:
    (slurm.path / "refuse").write_text(
        "sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job failed\n"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(
        RunFailed, match=r"sbatch refused a job \(sbatch: error: invalid partition specified: gpuu"
    ) as refused:
        launcher("slurm").submit(lambda: "done")
    assert "\n" not in str(refused.value)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_in_this_process_a_job_runs_when_it_is_looked_at(launcher: Make) -> None:
    calls: list[int] = []
    job = launcher("debug").submit(lambda: calls.append(1) or "done")
    assert calls == []
    assert job.is_over()
    assert (job.ending(), calls) == ("done", [1])
