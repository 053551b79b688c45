"""`python sweep.py --help`: the sweeps there are, and what can be set about them."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from chronomoe.sweep.points import CONFIGS
from chronomoe.sweep.settings import LauncherSettings, SweepSettings

USAGE = """\
python sweep.py sweep=<name> [key=value …] [launcher=local|slurm|debug] [launcher.jobs=N]
python sweep.py sweep.name=<new name> chrono.gamma=0,0.1,0.2 seed=1,2,3

Any key of train.py can be set, and any list of values is an axis. The same command goes on where a sweep was left.

Sweeps (configs/sweep):
{sweeps}

Settings of a sweep:
{sweep}
Settings of the launcher:
{launcher}"""


def help_text() -> str:
    files = sorted((CONFIGS / "sweep").glob("*.yaml"))
    width = max(len(file.stem) for file in files)
    return USAGE.format(
        sweeps="\n".join(f"  {file.stem:<{width}}  {first_comment(file.read_text())}" for file in files),
        sweep=settings_of("sweep", SweepSettings),
        launcher=settings_of("launcher", LauncherSettings),
    )


def first_comment(text: str) -> str:
    """The line of a YAML file that says what it is."""
    return next(line[2:] for line in text.splitlines() if line.startswith("# ") and not line.startswith("# @"))


def settings_of(prefix: str, schema: type) -> str:
    """A line a setting with its default, as an override writes it; `???` is what the launcher's file brings."""
    values = OmegaConf.structured(schema)
    missing = OmegaConf.missing_keys(values)
    return "".join(f"  {prefix}.{key}={'???' if key in missing else written(values[key])}\n" for key in values)


def written(value: Any) -> str:
    if OmegaConf.is_list(value):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)
