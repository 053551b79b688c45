"""One run as it lies on disk: configuration, curves, routing record, summary.

A run directory may be partial: training can still be going on, or have failed before the first evaluation. What is
missing is empty here (`{}`, an empty curve, `None`); what is there but unreadable is an `InputError` naming the file.
Config and summary are read at once, the larger files when they are first asked for: a thousand runs open in a second.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from chronomoe.settings import InputError

CONTROLS = ("lens", "pressure", "bias", "log_temperature")
"""Arrays [N, L, E] of `routing.npz` that say what the controller did, in the order they are shown."""


class Curve(NamedTuple):
    """A number against the optimizer step."""

    step: NDArray[np.int64]  # [N], increasing
    value: NDArray[np.float64]  # [N], finite


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where the tokens of N recorded optimizer steps went, in L MoE layers of E experts, and what steered them."""

    step: NDArray[np.int64]  # [N]
    tokens_per_expert: NDArray[np.int64]  # [N, L, E]
    coherence: NDArray[np.float32] | None  # [N, L]
    controls: Mapping[str, NDArray[np.float32]]  # those of CONTROLS that were recorded, each [N, L, E]

    @property
    def num_layers(self) -> int:
        return self.tokens_per_expert.shape[1]

    @property
    def num_experts(self) -> int:
        return self.tokens_per_expert.shape[2]


class Run:
    """What `metrics` and `routing` are not given is read from `directory` when first asked for, and kept."""

    def __init__(
        self,
        *,
        directory: Path,
        config: dict[str, Any],
        summary: dict[str, Any],
        metrics: dict[str, NDArray[np.float64]] | None = None,
        routing: Routing | None = None,
    ) -> None:
        self.directory, self.config, self.summary = directory, config, summary
        given = {"metrics": metrics, "routing": routing}
        self.__dict__.update({name: value for name, value in given.items() if value is not None})

    @classmethod
    def load(cls, directory: str | Path) -> Run:
        """Open a run directory; a folder is a run when it holds a `config.yaml`."""
        directory = Path(directory)
        if not (directory / "config.yaml").is_file():
            raise InputError(f"run={directory}: no run there (no config.yaml); give the folder that train.py wrote")
        return cls(
            directory=directory,
            config=read_config(directory / "config.yaml"),
            summary=read_json(directory / "summary.json"),
        )

    @cached_property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Column of `metrics.csv` -> its cells, NaN where a row has no value."""
        return read_metrics(self.directory / "metrics.csv")

    @cached_property
    def routing(self) -> Routing | None:
        """None for a dense model and for a run that stopped before its first record."""
        return read_routing(self.directory / "routing.npz")

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """What `python -m chronomoe.evaluate` found (its docstring has the keys); empty where it was not asked."""
        return read_json(self.directory / "evaluation.json")

    def curve(self, name: str) -> Curve:
        """The finite values of one metric, by step; empty when it was never recorded.

        Should a step have been written twice, the later row counts.
        """
        if name not in self.metrics:
            return Curve(np.empty(0, np.int64), np.empty(0))
        curve = finite_curve(self.metrics["step"].astype(np.int64), self.metrics[name])
        step, index_from_end = np.unique(curve.step[::-1], return_index=True)
        return Curve(step.astype(np.int64), curve.value[::-1][index_from_end])

    @property
    def last_step(self) -> int | None:
        """The last optimizer step that left a row in `metrics.csv`."""
        steps = self.metrics.get("step")
        return int(steps.max()) if steps is not None and len(steps) else None

    def setting(self, key: str) -> Any:
        """The configured value of a dotted key such as `chrono.law`; None when there is no such key."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node


def finite_curve(step: NDArray[np.int64], value: NDArray[Any]) -> Curve:
    """The points with a finite value; a cell that was never filled is NaN."""
    finite = np.isfinite(value)
    return Curve(step[finite], value[finite].astype(np.float64))


class ConfigLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads scalars as OmegaConf does: `1e-5` is a number, and what looks like a date is text. libyaml's parser, where
    PyYAML has it, is fifteen times as fast as OmegaConf's."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_config(path: Path) -> dict[str, Any]:
    """The settings as they were written, which is resolved."""
    try:
        config = yaml.load(path.read_bytes(), Loader=ConfigLoader)
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise unreadable(path, error) from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a mapping of settings; restore the file or train again")
    return {str(key): value for key, value in config.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise unreadable(path, error) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; delete the file to read the run without it")
    return content


def read_metrics(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns by name. A last line without its line break is still being written, and is left out."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (ValueError, OSError) as error:
        raise unreadable(path, error) from error
    header, *rows = list(csv.reader(line for line in lines if line.endswith("\n"))) or [[]]
    if not header:
        return {}
    if "step" not in header:
        raise InputError(f"{path}:1: no column `step`; the file is not the metrics of a run")
    table = np.full((len(rows), len(header)), np.nan)
    for index, row in enumerate(rows):
        try:
            cells = [float(cell) if cell else np.nan for cell in row]
            table[index, : len(cells)] = cells
        except ValueError as error:
            fault = (
                f"{path}:{index + 2}: a cell is not a number, or the row is too long ({error}); mend or cut that line"
            )
            raise InputError(fault) from error
    columns = dict(zip(header, table.T, strict=True))
    if not np.isfinite(columns["step"]).all():
        raise InputError(f"{path}: a row has no `step`; mend or cut that line")
    return columns


def read_routing(path: Path) -> Routing | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError) as error:
        raise unreadable(path, error) from error
    if "step" not in arrays or "tokens_per_expert" not in arrays:
        raise InputError(f"{path}: lacks `step` or `tokens_per_expert`; delete the file to read the run without it")
    tokens = arrays["tokens_per_expert"]
    if tokens.size == 0:
        return None
    shapes = {"step": tokens.shape[:1], "coherence": tokens.shape[:2]} | dict.fromkeys(CONTROLS, tokens.shape)
    if tokens.ndim != 3 or any(arrays[name].shape != shape for name, shape in shapes.items() if name in arrays):
        raise InputError(f"{path}: arrays of different lengths; delete the file to read the run without it")
    return Routing(
        step=arrays["step"],
        tokens_per_expert=tokens,
        coherence=arrays.get("coherence"),
        controls={name: arrays[name] for name in CONTROLS if name in arrays},
    )


def unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); restore the file or train again")
