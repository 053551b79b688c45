"""How the command line behaves: everything is checked before anything is written, and a bad input gets one line.

Exit codes: 0 done, 1 failed while running, 2 the input was wrong, 130 stopped by the user with state saved.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chronomoe.config import all_keys, parse, register, settle, unknown_key
from chronomoe.settings import InputError, RunFailed, Stopped

FAILED, WRONG_INPUT, STOPPED = 1, 2, 130


def guarded(main: Callable[[], Any]) -> None:
    """Run a command's main and leave with the exit code that says how it went."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors over instead of printing them
    register()
    try:
        main()
    except (KeyboardInterrupt, Stopped):
        sys.exit(STOPPED)
    except InputError as error:
        leave(str(error), WRONG_INPUT)
    except (HydraException, OmegaConfBaseException) as error:
        leave(explain(error), WRONG_INPUT)
    except RunFailed as error:
        leave(str(error), FAILED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        leave(f"{error.filename or 'writing'}: {error.strerror}; make room, then go on with ckpt_path=last", FAILED)


def leave(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf: the key, the fault, and the way out."""
    text, cause = str(error), error.__cause__
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' is no override: {text.splitlines()[-1]}; write key=value"
    if isinstance(error, MissingConfigException):
        return unknown_option(text)
    unknown = re.match(r"Could not (?:override|append|delete)[^']*'([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and unknown:
        return unknown_key(unknown.group(1).split("@")[0].replace("/", "."), all_keys())
    if isinstance(cause, OmegaConfBaseException):
        key = cause.full_key or text.rsplit(" ", 1)[-1]
        return f"{key}: {str(cause).splitlines()[0]}"
    return " ".join(text.split())


def unknown_option(text: str) -> str:
    """From Hydra's listing of a group's options: name the group, the options, and the nearest."""
    wanted = re.search(r"Could not find '([^']+)'", text)
    group, _, option = wanted.group(1).rpartition("/") if wanted else ("", "", "")
    listed = text.partition("Available options")[2].partition("Config search path")[0].splitlines()[1:]
    options = [name.strip() for name in listed if name.strip() and not name.strip().startswith("base_")]
    near = difflib.get_close_matches(option, options, n=1)
    hint = f"; did you mean {group}={near[0]}?" if near else ""
    return f"{group}={option} does not exist: there are {', '.join(options)}{hint}"


Settings = TypeVar("Settings")


def read_arguments(schema: type[Settings], arguments: Sequence[str]) -> Settings:
    """`key=value` arguments of a command that is no Hydra job, checked like any config; `--help` lists the keys."""
    cfg = OmegaConf.structured(schema)
    names = [field.name for field in dataclasses.fields(schema)]  # type: ignore[arg-type]
    if {"-h", "--help"} & set(arguments):
        print(OmegaConf.to_yaml(cfg), end="")
        sys.exit(0)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise InputError(f"'{argument}' is no argument: write key=value")
        if key not in names:
            raise InputError(unknown_key(key, names))
        OmegaConf.update(cfg, key, value.replace("${", "\\${"))  # a prompt is text, not an interpolation
    return settle(cfg)


def task_config(config: DictConfig) -> DictConfig:
    """The composed config without Hydra's own part."""
    task = config.copy()
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


class BeforeRun(Callback):
    """Hydra calls this before it makes the run directory: the moment to refuse, and to choose the directory."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from chronomoe.run import preflight, resume_from

        try:
            task = parse(task_config(config))
            chosen = any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra)
            resume = resume_from(task, config.hydra.run.dir if chosen else None)
            with read_write(config), open_dict(config):
                if resume is not None:
                    config.hydra.run.dir, task.ckpt_path = str(resume.run_dir), str(resume.checkpoint)
                    config.ckpt_path = task.ckpt_path
            preflight(task, config.hydra.run.dir)
        except InputError as error:
            leave(str(error), WRONG_INPUT)  # SystemExit: Hydra would swallow any other exception here

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a multirun as a whole if one of its points is wrong: better now than after the points before it."""
        from chronomoe.run import preflight

        try:
            for overrides in points(config):
                point = parse(compose(config.hydra.job.config_name, overrides))
                if point.ckpt_path == "last":
                    point.ckpt_path = None  # each job looks in its own folder
                preflight(point, config.hydra.sweep.dir, quiet=True)
        except InputError as error:
            leave(f"{' '.join(overrides)}: {error}", WRONG_INPUT)
        except (HydraException, OmegaConfBaseException) as error:
            leave(explain(error), WRONG_INPUT)


def points(config: DictConfig) -> Iterator[list[str]]:
    """The overrides of every job of a multirun: the product of its axes, as Hydra's basic sweeper forms it."""
    axes = []
    for override in OverridesParser.create().parse_overrides(list(config.hydra.overrides.task)):
        swept = override.is_discrete_sweep()
        values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
        axes.append([f"{override.get_key_element()}={value}" for value in values])
    yield from map(list, itertools.product(*axes))
