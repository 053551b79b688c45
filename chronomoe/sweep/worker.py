"""What a job of a sweep does: take the point's lock, go on where its run was left, train it, say how it ended.

Runs in a process of its own, which submitit starts (here, or as a SLURM job), and imports little before it has set how
many threads that process may use.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import Timeout

from chronomoe.settings import Stopped
from chronomoe.sweep.state import DONE, FAILED, RUNNING, STOPPED, WAITING, lock_of, read_left

LOOK_SECONDS = 1.0
"""Longer than another sweep holds a lock to see whether someone works on the point."""

PREEMPTED = threading.Event()
"""Whether this job is queued again, to go on from its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One point to train; submitit pickles it, so it holds plain values."""

    run_dir: str
    config: str
    """The resolved config, as YAML."""
    threads: int | None
    """Of each process of the run; null leaves that to torch."""
    own_process: bool
    """Whether this process is the point's own, to be set up as it likes."""

    def __call__(self) -> str:
        """How it ended: `done`, `failed`, `stopped`, or `running` if another process is at it already."""
        if self.own_process:
            set_up_process(self.threads)
        if not is_first():
            return self.train()
        lock = lock_of(Path(self.run_dir))
        try:
            with lock.acquire(timeout=LOOK_SECONDS):
                return self.train()
        except Timeout:
            return RUNNING

    def checkpoint(self) -> Any:
        """What SLURM runs again after a preemption or timeout; called by submitit."""
        from submitit.helpers import DelayedSubmission

        PREEMPTED.set()
        return DelayedSubmission(self)

    def train(self) -> str:
        from chronomoe.config import register, restore
        from chronomoe.run import run

        register()
        run_dir, config = Path(self.run_dir), restore(self.config)
        try:
            left = read_left(run_dir).status
            if left == DONE:  # by another job, since this one was sent off
                return DONE
            if left == WAITING and is_first():
                shutil.rmtree(run_dir, ignore_errors=True)  # the remains of a folder that was deleted
            if can_go_on(run_dir, config.trainer.max_steps):
                config.ckpt_path = "last"
            else:
                shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            run(config, run_dir)
            return DONE
        except (Stopped, KeyboardInterrupt):
            if not self.own_process:
                raise  # it is the sweep that was asked to stop
            return STOPPED
        except SystemExit:  # preempted or out of time: submitit has queued this job again
            (run_dir / "summary.json").unlink(missing_ok=True)
            raise
        except Exception:
            if PREEMPTED.is_set():  # torch's writers turn the exit that submitit raises into an error of theirs
                (run_dir / "summary.json").unlink(missing_ok=True)
                sys.exit(1)
            traceback.print_exc()  # into the job's log; the run's summary has it in a line
            return FAILED


def can_go_on(run_dir: Path, max_steps: int) -> bool:
    """Whether there is a checkpoint with steps left. One of the last step is of a run killed before its last
    evaluation, which has to be trained again."""
    from chronomoe.settings import InputError
    from chronomoe.training.resuming import read_checkpoint

    try:
        return bool(read_checkpoint(run_dir / "checkpoints" / "last.ckpt", mmap=True)["global_step"] < max_steps)
    except InputError:
        return False


def is_first() -> bool:
    """Whether this process writes for the run; on SLURM every process of a run is started from outside."""
    return int(os.environ.get("SLURM_PROCID", "0")) == 0


def set_up_process(threads: int | None) -> None:
    gc.disable()  # imports leave no garbage; training switches it on again
    if os.getpgid(0) != os.getpid():  # not for the leader of a session, which is alone already
        os.setpgid(0, 0)  # the terminal's Ctrl-C is for the sweep, which then asks its points to stop
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # until training begins and stops after a step
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
