"""Folders of sweeps made up on the spot, as sweep.py leaves them: pressure evens the load, and its amount acts on the
loss."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TOKENS_PER_STEP = 4096
SCALES = ("0", "0.01", "0.05", "0.1", "0.5")
PRESSURE, ETA = "chrono.pressure_scale", "chrono.temperature.eta"
MODELS = {"mixtral_2x8": {"num_layers": 2, "dim": 128}, "switch_2x8": {"num_layers": 2, "dim": 96}}


def write_sweep(
    folder: Path,
    *,
    axes: Mapping[str, Sequence[str]] = {PRESSURE: SCALES},
    seeds: Sequence[int] = (1, 2, 3),
    models: Sequence[str] = (),
    steps: int = 300,
    num_experts: int = 8,
    evaluated: bool = False,
    failed: Mapping[str, str] = {},
) -> Path:
    """A grid of `axes` beside `chrono=off`, crossed with `seeds` and `models`. `failed`: point -> its error; such a run
    stops a third of the way."""
    grid = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    strata = [{"model": model} for model in models] or [{}]
    points = [
        stratum | arm | {"seed": str(seed)}
        for stratum in strata
        for arm in [{"chrono": "off"}, *grid]
        for seed in seeds
    ]
    rows = []
    for overrides in points:
        name = " ".join(f"{key}={value}" for key, value in overrides.items())
        directory = folder / "runs" / hashlib.sha256(name.encode()).hexdigest()[:12]
        error = failed.get(name)
        write_run(directory, overrides, name, steps // 3 if error else steps, num_experts, error)
        if evaluated and not error:
            write_evaluation(directory, overrides)
        rows.append(row_of(name, overrides, directory))
    write_records(folder, rows, axes, models)
    return folder


def copy_runs(folder: Path, source: Path, count: int) -> Path:
    """A sweep of `count` arms beside `chrono=off`, one seed each, whose runs are copies of the first two of `source`
    under other values of the axis: quick to make, and as large as it looks."""
    off, other = (path for path in sorted((source / "runs").iterdir())[:2])
    rows = []
    for number in range(count + 1):
        overrides = {"chrono": "off"} if number == 0 else {PRESSURE: f"{number / count:.4f}"}
        overrides |= {"seed": "1"}
        directory = folder / "runs" / f"{number:012x}"
        directory.mkdir(parents=True)
        for name in ("metrics.csv", "routing.npz"):
            (directory / name).symlink_to((off if number == 0 else other) / name)
        name = " ".join(f"{key}={value}" for key, value in overrides.items())
        write_config(directory, overrides, name, num_experts=8)
        shutil.copy((off if number == 0 else other) / "summary.json", directory)
        rows.append(row_of(name, overrides, directory))
    write_records(folder, rows, {PRESSURE: [row[PRESSURE] for row in rows if PRESSURE in row]}, ())
    return folder


def write_records(
    folder: Path, rows: Sequence[dict[str, Any]], axes: Mapping[str, Sequence[str]], models: Sequence[str]
) -> None:
    record = {
        "name": folder.name,
        "axes": {key: list(values) for key, values in axes.items()},
        "arms": ["chrono=off"],
        "baseline": "chrono=off",
        "within": ["model"] if models else [],
        "varies": ["chrono.law", *axes, "seed", *(["model.dim"] if models else [])],
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(record, sort_keys=False))
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def row_of(name: str, overrides: Mapping[str, str], directory: Path) -> dict[str, Any]:
    summary = json.loads((directory / "summary.json").read_text())
    return {"overrides": name, **overrides, "run_dir": str(directory), **summary}


def write_config(directory: Path, overrides: Mapping[str, str], name: str, num_experts: int) -> None:
    off = overrides.get("chrono") == "off"
    model = {"num_experts": num_experts, "dense": False} | MODELS[overrides.get("model", "mixtral_2x8")]
    temperature = {"eta": float(overrides.get(ETA, 0))}
    chrono = {"law": "off"} if off else {"law": "chronovisor", "pressure_scale": float(overrides.get(PRESSURE, 0.1))}
    config = {
        "model": model,
        "router": {"kind": "mixtral", "top_k": 2},
        "chrono": chrono | {"coherence": "entropy", "temperature": temperature},
        "data": {"source": "stdlib"},
        "seed": int(overrides["seed"]),
        "sweep": {"name": directory.parents[1].name, "point": name},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def write_run(
    directory: Path, overrides: Mapping[str, str], name: str, steps: int, num_experts: int, error: str | None
) -> None:
    directory.mkdir(parents=True)
    write_config(directory, overrides, name, num_experts)
    off = overrides.get("chrono") == "off"
    pressure = 0.0 if off else float(overrides.get(PRESSURE, 0.1))
    eta = float(overrides.get(ETA, 0))
    seed_rng = np.random.default_rng(int(overrides["seed"]))  # what paired runs share
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    step = np.arange(1, steps + 1)
    cost = 0.0 if off else 0.12 * pressure**1.5 - 0.05 * np.exp(-((np.log10(pressure + 1e-3) + 1.2) ** 2)) + 2 * eta**2
    cost += 0.015 * rng.standard_normal() + 0.06 * seed_rng.standard_normal()
    level = 4.3 if overrides.get("model") == "switch_2x8" else 4.1
    loss = level + 4.2 * np.exp(-step / 60) + cost * (1 - np.exp(-step / 100))
    noisy = loss + 0.05 * seed_rng.standard_normal(steps)

    preference = seed_rng.standard_normal((2, num_experts))
    freedom = np.exp(-step * pressure / 12)[:, None, None]
    logits = preference * freedom + 0.05 * rng.standard_normal((steps, 2, num_experts))
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # [N, L, E]
    tokens = rng.multinomial(2 * TOKENS_PER_STEP, share)
    lens = -preference * (1 - freedom) + 0.02 * np.cumsum(rng.standard_normal(share.shape), axis=0) * (pressure > 0)
    coherence = 1 + (share * np.log(share)).sum(-1) / np.log(num_experts)
    max_vio = tokens.max(-1) / tokens.mean(-1) - 1  # [N, L]
    np.savez_compressed(
        directory / "routing.npz",
        step=step,
        tokens_per_expert=tokens,
        bias=lens.astype(np.float32),
        pressure=(pressure * np.clip(1 - num_experts * share, -1, 1)).astype(np.float32),
        lens=lens.astype(np.float32),
        coherence=coherence.astype(np.float32),
    )
    columns = {"step": step, "train/loss": noisy, "train/tokens": step * TOKENS_PER_STEP}
    columns |= {"train/grad_norm": np.exp(0.2 * rng.standard_normal(steps)), "router/max_vio": max_vio.mean(1)}
    columns |= {} if off else {"chrono/coherence": coherence.mean(1)}
    write_metrics(directory / "metrics.csv", columns, loss + 0.1)
    summary: dict[str, Any] = {"status": "failed" if error else "done", "error": error, "steps": steps}
    if not error:
        summary |= {
            "val_loss": loss[-1] + 0.1,
            "val_perplexity": float(np.exp(loss[-1] + 0.1)),
            "max_vio_early": max_vio[: steps // 3].mean(),
            "max_vio_late": max_vio[-50:].mean(),
            "val_max_vio": max_vio[-10:].mean() + 0.02 * rng.random(),
            "load_entropy": 1 - coherence[-50:].mean(),
            "expert_information": 0.65 + 0.02 * rng.standard_normal(),
            "dead_expert_frac": 0.0,
            "tokens_per_sec": 5300 + 90 * rng.standard_normal(),
        }
    (directory / "summary.json").write_text(json.dumps(summary))


def write_metrics(path: Path, columns: Mapping[str, np.ndarray], val_loss: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "val/loss"])
        for index, values in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([*(f"{value:.6g}" for value in values), ""])
            if (index + 1) % 25 == 0:
                writer.writerow([str(values[0]), *[""] * (len(columns) - 1), f"{val_loss[index]:.6g}"])


def write_evaluation(directory: Path, overrides: Mapping[str, str]) -> None:
    rng = np.random.default_rng(int(overrides["seed"]))
    pressure = 0.0 if overrides.get("chrono") == "off" else float(overrides.get(PRESSURE, 0.1))

    def readings(level: float) -> dict[str, Any]:
        layers = [
            {
                "domain_debiased": value,
                "domain_low": value - 0.02,
                "domain_high": value + 0.02,
                "domain_p_value": 0.001 if value > 0.02 else 0.4,
                "domain_z": value / 0.004,
            }
            for value in level + 0.01 * rng.standard_normal(2)
        ]
        return {"mean": {"domain_debiased": float(np.mean([layer["domain_debiased"] for layer in layers]))}} | {
            "layers": layers
        }

    trained, untrained = readings(0.22 - 0.15 * pressure), readings(0.05)
    content = {
        "domains": ["ash", "birch", "cedar"],
        "permutations": 999,
        "trained": trained,
        "untrained": untrained,
        "references": {
            name: {"domain_debiased": value, "domain_low": value, "domain_high": value, "domain_p_value": p}
            for name, value, p in (("oracle", 0.71, 0.001), ("random", 0.001, 0.5))
        },
        "trained_minus_untrained": {
            "domain_debiased": trained["mean"]["domain_debiased"] - untrained["mean"]["domain_debiased"]
        },
    }
    (directory / "evaluation.json").write_text(json.dumps(content))
