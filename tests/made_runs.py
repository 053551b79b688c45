"""Runs made up in memory, for tests of what is said about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy import ndarray

from chronomoe.study.run import Run


def made_run(
    law: str = "off",
    seed: int = 1,
    summary: dict[str, Any] | None = None,
    *,
    point: str | None = None,
    metrics: dict[str, ndarray] | None = None,
    name: str | None = None,
    **settings: Any,
) -> Run:
    """A finished run. `settings` are dotted keys with `__` for the dot: `router__top_k=2`."""
    config: dict[str, Any] = {"seed": seed, "ckpt_path": None, "sweep": {"point": point}, "chrono": {"law": law}}
    for key, value in settings.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return Run(
        directory=Path(name or f"made/{law}-{seed}"),
        config=config,
        summary={"status": "done"} | (summary or {}),
        metrics={} if metrics is None else metrics,
    )
