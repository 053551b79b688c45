"""`python -m chronomoe.rank <run directory>`: one further process of a run, which the first one starts."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from chronomoe.config import load_config, register
from chronomoe.entry import FAILED, STOPPED
from chronomoe.run import train
from chronomoe.settings import InputError, RunFailed, Stopped
from chronomoe.training.launch import leave_process_group


def main() -> None:
    register()
    run_dir = Path(sys.argv[1])
    try:
        train(load_config(run_dir / "config.yaml"), run_dir, time.perf_counter())
    except (KeyboardInterrupt, Stopped):
        sys.exit(STOPPED)
    except (InputError, RunFailed):
        sys.exit(FAILED)  # the first process meets the same and says so
    finally:
        leave_process_group()


if __name__ == "__main__":
    main()
