"""Jobs through submitit: processes of this machine, SLURM jobs, or calls in this process, behind one `Launcher`.

Locally every job has devices of its own: so many cores, or GPUs that no other job sees. A job outlives the sweep that
started it: when the sweep is killed its points go on, and the next sweep finds them.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from chronomoe.config import TrainConfig
from chronomoe.settings import InputError, RunFailed
from chronomoe.sweep.settings import LauncherSettings
from chronomoe.sweep.worker import Work
from chronomoe.training.devices import choose_hardware, processor_cores

LAST_WORDS = 4000
"""Characters at the end of a job's log that are searched for its last line."""
PROGRESS_BAR = re.compile(r"\d+%\|")


class Job:
    """One submitted point."""

    def __init__(self, job: Any, kind: str, devices: Sequence[int]) -> None:
        self._job, self._kind, self.devices = job, kind, devices
        self._is_cut_off = False

    def is_over(self) -> bool:
        return self._is_cut_off or bool(self._job.done())

    def ending(self) -> str | None:
        """What `Work` returned; None if its process died before it could."""
        if self._kind == "debug":
            return str(self._job.result())
        first = self._job.task(0)  # of the processes of the run, the one that writes
        if not first.paths.result_pickle.exists():
            return None
        outcome, result = first._get_outcome_and_result()
        return str(result) if outcome == "success" else None

    def stop(self) -> None:
        """Ask it to save its state and end."""
        if self._kind == "local":
            with suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)  # submitit's controller hands it on to the worker
        elif self._kind == "slurm":
            self._job.cancel(check=False)
            self._job.watcher.register_job(self._job.job_id)  # asks sacct soon: one that waits says nothing itself
        self._is_cut_off = self._kind == "debug"

    def last_words(self) -> str:
        """The last line it printed to its error log, progress bars left out; empty if there is none."""
        try:
            text = self._job.paths.stderr.read_text(errors="replace")[-LAST_WORDS:]
        except OSError:
            return ""
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
        return next((line for line in reversed(lines) if line and not PROGRESS_BAR.search(line)), "")


class Launcher:
    def __init__(self, settings: LauncherSettings, folder: Path, shared: TrainConfig) -> None:
        """`folder` gets the jobs' logs. `shared` says how many devices a point takes. Raises InputError if the launcher
        or the devices are not there."""
        import submitit

        self.settings = settings
        self._trainer = shared.trainer
        self._free: list[list[int]] = []
        self._on_gpu = settings.kind == "local" and choose_hardware(shared.trainer).accelerator == "cuda"
        if self._on_gpu:
            self._free = share_out(visible_gpus(), shared.trainer.devices, settings.jobs)
        if settings.kind == "local":
            self._executor: Any = submitit.LocalExecutor(folder)
        elif settings.kind == "slurm" and None in map(shutil.which, ("srun", "sbatch")):
            raise InputError("launcher=slurm: there is no SLURM here (no srun on the PATH); use launcher=local")
        else:
            self._executor = submitit.AutoExecutor(folder, cluster=settings.kind)
        self._executor.update_parameters(**self._parameters())

    def _parameters(self) -> dict[str, Any]:
        settings, trainer = self.settings, self._trainer
        parameters: dict[str, Any] = {"timeout_min": max(1, math.ceil(60 * settings.timeout_hours))}
        if settings.kind == "local":
            # Lightning starts the further processes of a run; submitit starts one.
            parameters |= {"tasks_per_node": 1, "gpus_per_node": trainer.devices if self._on_gpu else 0}
        if settings.kind == "slurm":
            parameters |= {
                "name": f"chronomoe-{os.getpid()}",
                "nodes": trainer.num_nodes,
                "tasks_per_node": trainer.devices,
                "gpus_per_node": trainer.devices if trainer.accelerator != "cpu" else None,
                "cpus_per_task": settings.cpus_per_task,
                "mem_gb": settings.mem_gb,
                "slurm_partition": settings.partition,
                "slurm_account": settings.account,
                "slurm_qos": settings.qos,
                "slurm_constraint": settings.constraint,
                "slurm_setup": settings.setup or None,
            }
        return parameters

    @property
    def threads(self) -> int | None:
        """Of each process: an even share of the cores, locally."""
        if self.settings.kind != "local":
            return None
        return max(1, processor_cores() // (self.settings.jobs * self._trainer.devices))

    def submit(self, work: Work) -> Job:
        """Raises RunFailed if SLURM takes no job like this."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        devices: list[int] = []
        if self._on_gpu:
            devices = self._free.pop(0)
            self._executor.update_parameters(visible_gpus=devices)
        # The terminal sends Ctrl-C to every process of the sweep. What is blocked here is blocked in submitit's
        # controller, which would otherwise give its worker a second to save a model; here it comes a moment later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            job = self._executor.submit(work)
        except (FailedJobError, FailedSubmissionError) as error:
            words = " ".join(str(error).split())
            raise RunFailed(f"sbatch refused a job ({words}): mend launcher.…, then the same command goes on") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return Job(job, self.settings.kind, devices)

    def release(self, job: Job) -> None:
        """A job is over: its devices are free."""
        if self._on_gpu:
            self._free.append(list(job.devices))


def visible_gpus() -> list[int]:
    """The GPUs this process may use, by the numbers that CUDA_VISIBLE_DEVICES gives them."""
    import torch

    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return list(range(torch.cuda.device_count()))
    names = [name.strip() for name in allowed.split(",") if name.strip()]
    if not all(name.isdigit() for name in names):
        raise InputError(
            f"CUDA_VISIBLE_DEVICES={allowed}: a sweep shares out GPUs by number; list numbers, or unset it"
        )
    return [int(name) for name in names]


def share_out(gpus: Sequence[int], devices: int, jobs: int) -> list[list[int]]:
    """The GPUs of each of `jobs` jobs at a time."""
    if jobs * devices > len(gpus):
        raise InputError(
            f"launcher.jobs={jobs} x trainer.devices={devices} need {jobs * devices} GPUs and there are {len(gpus)}: "
            f"use launcher.jobs={max(1, len(gpus) // devices)}"
        )
    return [list(gpus[first : first + devices]) for first in range(0, jobs * devices, devices)]
