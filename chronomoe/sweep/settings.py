"""Settings of the `sweep` group, which every run carries as its membership, and of the launcher, which only the engine
reads."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.settings import setting


@dataclass(kw_only=True)
class SweepSettings:
    name: str | None = setting(None)
    """Of the sweep; W&B gathers its runs in a group of this name. null: this run belongs to none."""
    dir: str = setting("outputs/sweeps")
    """Folder that holds a folder for each sweep."""
    arms: list[str] = setting([])
    """Arms beside the grid, such as `chrono=off`: overrides separated by blanks, each crossed with the seeds."""
    baseline: str | None = setting(None)
    """The arm (overrides, without the seed) that `chronomoe.compare` and the report hold the others against."""
    within: list[str] = setting([])
    """Axes inside whose values arms are compared, never across them: [model] compares laws within each model."""
    sampler: str = setting("grid", choices=["grid", "random", "tpe"])
    """Every point of the axes; or `trials` of them, drawn at random or where earlier ones promise most (TPE)."""
    trials: int | None = setting(None, low=1)
    """Points of a search; null for a grid, which has as many as it has."""
    objectives: list[str] = setting(["val_loss"])
    """Numbers of `summary.json` a search makes small (or large, where more is better); two or more give a front."""
    sampler_seed: int = setting(0, low=0)
    """Of the search's draws; trial n depends on this, n and the trials before it."""
    pruner: str = setting("none", choices=["none", "median", "halving"])
    """Stop a point whose validation loss is behind: below the median of the others at that step, or by successive
    halving. Needs one objective."""
    restarts: int = setting(2, low=0)
    """Times a point whose process died without a word goes on from its checkpoint."""
    storage: str | None = setting(None)
    """Optuna's storage: a journal file or a database URL that several machines share; null: `study.log` in the
    folder."""
    point: str | None = setting(None)
    """Set by the engine: the overrides that make this run's point."""


@dataclass(kw_only=True)
class LauncherSettings:
    kind: str = setting(choices=["local", "slurm", "debug"])
    """Processes here, SLURM jobs, or one after another inside this process, for a debugger."""
    jobs: int = setting(low=1)
    """Points at a time."""
    timeout_hours: float = setting(24.0, low=0.0)
    """A job is ended after so long; on SLURM it goes on from its checkpoint in a new allocation."""
    partition: str | None = setting(None)
    """SLURM partition."""
    account: str | None = setting(None)
    """SLURM account."""
    qos: str | None = setting(None)
    """SLURM quality of service."""
    constraint: str | None = setting(None)
    """SLURM node feature."""
    cpus_per_task: int | None = setting(None, low=1)
    """Processor cores of each process on SLURM; locally the cores are shared evenly among the jobs."""
    mem_gb: float | None = setting(None, low=0.0)
    """Memory of a SLURM node for one job."""
    setup: list[str] = setting([])
    """Shell lines that a SLURM job runs first, such as loading modules."""
