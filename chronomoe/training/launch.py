"""Starting the other processes of a multi-device run.

Lightning would repeat this process's command line, which under `--multirun` starts the whole sweep again in every rank.
Here each further rank is `python -m chronomoe.rank <run directory>`: it reads the resolved config and runs
it. Under torchrun or SLURM, which start all ranks themselves, nothing is started; there, name the folder with
hydra.run.dir.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chronomoe.settings import InputError, RunFailed, Stopped

RANK_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK")
GRACE_SECONDS = 30.0


def is_first_process() -> bool:
    """Whether this process writes and speaks for the run."""
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    return int(rank) == 0


def is_launched_from_outside() -> bool:
    """Whether torchrun or SLURM has started, or will start, every process of this run."""
    return "WORLD_SIZE" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1


@contextmanager
def launched(run_dir: Path, devices: int) -> Iterator[None]:
    """Run the body as rank 0 beside `devices - 1` further processes; wait for them and leave os.environ as it was."""
    if devices == 1 or is_launched_from_outside():
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(devices), "NODE_RANK": "0"}
    command = [sys.executable, "-m", "chronomoe.rank", str(run_dir)]
    others = [
        subprocess.Popen(command, env={**os.environ, **shared, "LOCAL_RANK": str(rank)}) for rank in range(1, devices)
    ]
    over = threading.Event()
    watch_over(others, over)
    os.environ.update(shared, LOCAL_RANK="0")
    try:
        yield
    except Stopped:
        raise  # the others stop at the same step
    except BaseException as error:
        lost = next((process for process in others if has_died(process)), None)
        for process in others:
            process.kill()
        if lost is not None and not isinstance(error, (InputError, RunFailed)):
            raise RunFailed(f"process {lost.pid} of this run died with code {lost.returncode}") from error
        raise
    finally:
        over.set()
        for name in RANK_VARIABLES:
            os.environ.pop(name, None)
        for process in others:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        leave_process_group()


def has_died(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ends, within a second, otherwise than by finishing or by being stopped."""
    try:
        return process.wait(1.0) not in (0, 130)
    except subprocess.TimeoutExpired:
        return False


def watch_over(processes: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process if another rank dies and the run is not soon `over`: a collective may wait for half an hour."""

    def watch(process: subprocess.Popen[bytes]) -> None:
        if process.wait() not in (0, 130) and not over.wait(GRACE_SECONDS):
            print(f"error: process {process.pid} of this run died with code {process.returncode}", file=sys.stderr)
            os._exit(1)

    for process in processes:
        threading.Thread(target=watch, args=(process,), daemon=True).start()


def leave_process_group() -> None:
    """So that the next job of a multirun makes its own, and no thread of this one is cut off at the end."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
