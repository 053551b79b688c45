"""How a command ends: a bad input gets one line, and the exit code says how it went.

Exit codes: 0 done, 1 failed while running, 2 the input was wrong, 130 stopped by the user with state saved.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chronomoe.config import SCHEMAS, all_keys, register, settle, unknown_key
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
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        leave(explain(error), WRONG_INPUT)
    except RunFailed as error:
        leave(str(error), FAILED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        leave(f"{error.filename or 'writing'}: {error.strerror}; make room, then go on with ckpt_path=last", FAILED)
    finally:
        gc.enable()  # as a command finds it, which may have switched it off to start faster


def leave(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def explain(error: Exception) -> str:
    """One line for an error of Hydra, OmegaConf or the YAML parser: the key, the fault, and the way out."""
    text, cause = str(error), error.__cause__
    if isinstance(error, OverrideParseException):
        faults = [line for line in text.splitlines() if not line.startswith(("Error parsing", "See "))]
        way = "mend the value, or quote it: key='value'" if "=" in error.override else "write key=value"
        return f"'{error.override}' is no override: {faults[0].partition(' expecting')[0]}; {way}"
    if isinstance(error, YAMLError):
        return unreadable_yaml(error)
    in_file = re.match(r"In '([^']+)': \w+ raised while composing config:\s*(.*?)\s*full_key: (\S+)", text, re.DOTALL)
    if in_file:
        return wrong_in_file(*in_file.groups())
    if isinstance(error, MissingConfigException):
        return unknown_option(text)
    unknown = re.match(r"Could not (?:override|append|delete)[^']*'([^']+)'", text)
    if isinstance(error, ConfigCompositionException) and unknown:
        return unknown_key(unknown.group(1).split("@")[0].replace("/", "."), all_keys())
    if isinstance(cause, OmegaConfBaseException):
        key = cause.full_key or text.rsplit(" ", 1)[-1]
        return f"{key}: {str(cause).splitlines()[0]}"
    return " ".join(text.split())


def unreadable_yaml(error: YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    way = "join the two" if str(problem).startswith("found duplicate key") else "mend that line"
    return f"{mark.name}:{mark.line + 1}: {problem}; {way}"


def wrong_in_file(file: str, fault: str, key: str) -> str:
    """What a file of a group, such as `sweep/mine`, says of a key that the schema does not allow."""
    axis, group = "hydra.sweeper.params.", file.partition("/")[0]
    if key in (f"{group}.{name}" for name in ("hydra", *SCHEMAS)):
        fault = f"'{key}' is no setting: begin the file with `# @package _global_`"
    elif fault.startswith("Key "):
        fault = unknown_key(key, [*all_keys(), axis.rstrip(".")])
    elif key.startswith(axis) and "not Optional" in fault:
        key = key.removeprefix(axis)
        fault = f"{key}: the axis is empty; give it values, such as {key}: 1,2,3"
    elif "is not a ListConfig" in fault:
        fault = f"{key} must be a list, such as [a,b]"
    else:
        fault = f"{key}: {fault.splitlines()[0]}"
    return f"{file}.yaml: {fault}"


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
        value = value.replace("${", "\\${")  # a prompt is text, not an interpolation
        is_list = not OmegaConf.is_missing(cfg, key) and OmegaConf.is_list(cfg[key])
        try:
            OmegaConf.update(cfg, key, words_of(value) if is_list else value)
        except OmegaConfBaseException as error:
            raise InputError(f"{error.full_key!s}: {str(error).splitlines()[0]}") from None
    return settle(cfg)


def words_of(value: str) -> list[str]:
    """`[a,b]`, or `a,b`: the elements of a list."""
    return [word.strip() for word in value.removeprefix("[").removesuffix("]").split(",") if word.strip()]
