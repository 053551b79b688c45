"""`python sweep.py sweep=<name> [key=value …] [launcher=…]`: from the command line to a finished sweep.

What a sweep leaves in `outputs/sweeps/<name>/`: `results.csv`, `runs/<hash of the config>/` (run directories),
`study.log` (Optuna's journal), `jobs/` (what the processes printed), `locks/`, `sweep.yaml`.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from hydra import compose
from tqdm import tqdm

from chronomoe.config import TrainConfig, settle
from chronomoe.run import check_writable, preflight
from chronomoe.settings import InputError, RunFailed
from chronomoe.study.measurements import METRICS
from chronomoe.sweep.axes import Axis, distribution, grid, is_axis, plain, read_axes, read_overrides
from chronomoe.sweep.help import help_text
from chronomoe.sweep.points import Composer, Point, beside, for_arm, varying, without_repeats
from chronomoe.sweep.record import check_folder, record_of, write_record
from chronomoe.sweep.settings import LauncherSettings, SweepSettings
from chronomoe.sweep.state import FAILED

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NEEDED = ("optuna", "submitit", "rich")
OBJECTIVES = [key for key, metric in METRICS.items() if metric.group not in ("specialisation", "stability")]
"""What is compared and stands in the summary, where a search can read it as soon as a point ends."""


def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f'python sweep.py needs {", ".join(missing)}: install with pip install -e ".[sweep]"')
    launching = [text for text in arguments if plain(text.partition("=")[0]).partition(".")[0] == "launcher"]
    for override in read_overrides(launching):
        if is_axis(override):
            raise InputError(f"{override.input_line} cannot be an axis: one launcher starts all points")
    overrides = [text for text in arguments if text not in launching]
    with Composer() as composer:
        try:
            conduct(composer, overrides, compose_launcher(launching))
        except OSError as error:
            if error.errno not in DISK_IS_FULL:
                raise
            place = error.filename or "the folder of the sweep"
            raise RunFailed(f"{place}: {error.strerror}; make room, then the same command goes on") from None


def conduct(composer: Composer, overrides: Sequence[str], launcher_settings: LauncherSettings) -> None:
    """Raises InputError before anything is written, RunFailed if a point failed."""
    from chronomoe.sweep.board import Board
    from chronomoe.sweep.engine import Engine
    from chronomoe.sweep.launcher import Launcher
    from chronomoe.sweep.screen import Screen
    from chronomoe.sweep.source import Grid, Search, Source
    from chronomoe.sweep.trials import Trials

    shared, axes, fixed = read_sweep(composer, overrides)
    settings, folder = shared.sweep, Path(shared.sweep.dir) / str(shared.sweep.name)
    check_writable(folder, "sweep.dir")
    make_point = partial(composer.point, fixed, folder=folder)
    points: list[Point] = []
    if settings.sampler == "grid":
        points = grid_points(composer, fixed, axes, settings, folder)
    here = launcher_settings.kind != "slurm"
    check_points(points or [Point(overrides=[], config=shared, run_dir=folder)], folder, here)
    record = record_of(shared, axes, varying(points))
    check_folder(folder, record)
    # A folder for each start: submitit names files after process numbers, which come again.
    launcher = Launcher(launcher_settings, folder / "jobs" / time.strftime("%Y-%m-%d_%H-%M-%S"), shared)
    trials = Trials(settings, folder, axes, record)
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, record)
    board = Board(
        name=str(settings.name),
        objectives=settings.objectives,
        axes=[axis.key for axis in axes],
        jobs=launcher_settings.jobs,
    )
    source: Source = Grid(board, points)
    if settings.sampler != "grid":
        source = Search(board, trials, partial(drawn_point, make_point, shared, folder, here))
    signal.signal(signal.SIGTERM, stop)
    with Screen(board) as screen:
        try:
            Engine(settings, folder, source, trials, launcher, board, screen).run()
        finally:
            say_where(folder)
    if board.count(FAILED):
        raise RunFailed(
            f"{board.count(FAILED)} of {board.total} points failed: their errors are in {folder / 'results.csv'}; the "
            f"same command tries them again"
        )


def read_sweep(composer: Composer, overrides: Sequence[str]) -> tuple[TrainConfig, list[Axis], list[str]]:
    """What all points share, the axes, and the overrides of the command line that are no axis. Raises InputError."""
    _, params = composer.shared(read_axes({}, overrides)[1])
    axes, fixed = read_axes(params, overrides)  # a single value for an axis of the file shortens that axis
    shared, _ = composer.shared(fixed)
    check_sweep(shared, axes)
    return shared, axes, fixed


def compose_launcher(overrides: Sequence[str]) -> LauncherSettings:
    composed = compose("launch", list(overrides))
    settings = settle(composed.launcher, "launcher.")
    assert isinstance(settings, LauncherSettings)
    return settings


def grid_points(
    composer: Composer, fixed: Sequence[str], axes: Sequence[Axis], settings: SweepSettings, folder: Path
) -> list[Point]:
    """The arms beside the grid, then the grid."""
    overrides = [(for_arm(fixed, each), each) for each in beside(axes, settings.arms)]
    overrides += [(list(fixed), each) for each in grid(axes)]
    shown = tqdm(overrides, desc="composing", unit="point", delay=2, leave=False)
    return without_repeats([composer.point(shared, each, folder) for shared, each in shown], settings.arms)


def check_points(points: Sequence[Point], folder: Path, here: bool) -> None:
    """As a run is checked before it starts: nothing is written but the corpus."""
    for number, point in enumerate(tqdm(points, desc="checking", unit="point", delay=2, leave=False)):
        try:
            preflight(point.config, folder, quiet=number > 0, here=here)
        except InputError as error:
            raise InputError(f"{point.name}: {error}" if point.name else str(error)) from None


def drawn_point(
    make_point: partial[Point], shared: TrainConfig, folder: Path, here: bool, overrides: list[str]
) -> Point:
    """A point that a search drew. One that contradicts itself is refused alone."""
    try:
        point = make_point(overrides)
        preflight(point.config, folder, quiet=True, here=here)
        return point
    except InputError as error:
        refused = folder / "runs" / "refused"
        return Point(overrides=overrides, config=shared, run_dir=refused, refusal=str(error))


def check_sweep(shared: TrainConfig, axes: Sequence[Axis]) -> None:
    """Settings that contradict each other. Raises InputError, naming the key and the way out."""
    settings = shared.sweep
    keys = [axis.key for axis in axes]
    if not axes:
        raise InputError(
            "there is nothing to sweep: name a sweep (sweep=pressure_scale) or an axis (chrono.gamma=0,0.1)"
        )
    for key in keys:
        if plain(key).partition(".")[0] in ("sweep", "hydra", "ckpt_path", "logger"):
            raise InputError(f"{key} cannot be an axis: it does not shape a run")
        if plain(key) in ("trainer", "trainer.devices", "trainer.num_nodes", "trainer.accelerator"):
            raise InputError(f"{key} cannot be an axis: every point gets the same devices; sweep it in separate sweeps")
    if not settings.name:
        raise InputError("sweep.name must be given for axes of the command line: add sweep.name=…")
    if shared.ckpt_path is not None:
        raise InputError("ckpt_path has no meaning for a sweep: each point goes on from its own checkpoint by itself")
    if not settings.objectives:
        raise InputError("sweep.objectives is empty: name one, such as sweep.objectives=[val_loss]")
    for metric in settings.objectives:
        if metric not in OBJECTIVES:
            raise InputError(f"sweep.objectives: {metric} is none: there are {', '.join(OBJECTIVES)}")
    is_search = settings.sampler != "grid"
    for axis in axes if is_search else []:
        distribution(axis)
        if getattr(axis.override.value(), "shuffle", False):
            raise InputError(f"{axis.override.input_line}: a search draws from its axes in no order; leave out shuffle")
    if is_search and settings.trials is None:
        raise InputError(f"sweep.sampler={settings.sampler} draws sweep.trials=… points: say how many")
    if not is_search and settings.trials is not None:
        raise InputError(f"sweep.trials={settings.trials} is for a search: add sweep.sampler=tpe (or random)")
    if is_search and settings.arms:
        raise InputError("sweep.arms stand beside a grid: run them as a sweep of their own")
    if is_search and "seed" in keys:
        raise InputError(
            "seed is no axis of a search: fix it (seed=1), and cross what the search finds with seeds after"
        )
    if settings.pruner != "none" and settings.objectives != ["val_loss"]:
        raise InputError(
            f"sweep.pruner={settings.pruner} looks at the validation loss: use sweep.objectives=[val_loss]"
        )


def say_where(folder: Path) -> None:
    print(
        f"results  {folder / 'results.csv'}\n"
        f"compare  python -m chronomoe.compare runs={folder}\n"
        f"report   python -m chronomoe.report runs={folder}"
    )
    sys.stdout.flush()


def stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
