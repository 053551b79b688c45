"""Reading a `.wandb` file back: what a run recorded before anything was synced."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format (32 KiB blocks of checked fragments)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return  # still being written
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last fragment
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole(path: Path) -> list[Any]:
    """Every record, once the last is there: W&B's own process may still be writing when the run has ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path}: no end of the run")


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class WandbRun:
    """What the one offline run below `directory` recorded."""

    def __init__(self, directory: Path) -> None:
        (self.file,) = directory.glob("wandb/offline-run-*/*.wandb")
        self.run: Any = None
        """The protocol's own record: `run_id`, `display_name`, `run_group`, `job_type`, `tags`, …"""
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.step_metrics: dict[str, str] = {}
        """Key, or pattern that ends in `*` -> the metric it is drawn against."""
        self.aggregates: dict[str, str] = {}
        """Key -> what of its values the summary keeps instead of the last."""
        self.exit_code: int | None = None
        for record in whole(self.file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                self.history.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "metric":
                self._define(record.metric)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "run":
                self.run = record.run
                self.config |= values(record.run.config.update)
            elif kind == "config":
                self.config |= values(record.config.update)

    def _define(self, metric: Any) -> None:
        name = metric.name or metric.glob_name
        self.step_metrics[name] = metric.step_metric
        for aggregate in ("min", "max", "mean"):
            if getattr(metric.summary, aggregate):
                self.aggregates[name] = aggregate

    def column(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]

    def axis_of(self, key: str) -> str:
        """What W&B draws a key against: its own definition, else that of the longest pattern that fits."""
        fitting = [name for name in self.step_metrics if name.endswith("*") and key.startswith(name[:-1])]
        return self.step_metrics.get(key) or self.step_metrics[max(fitting, key=len)]
