"""The grids of the documented basin studies: every cell is there once, composes, and trains what it says."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from training_runs import PROJECT, Outcome

from chronomoe.before_run import points
from chronomoe.config import TrainConfig, load_config, parse

# study -> (eta, pressure) of every cell
CELLS = {
    "basin_reduced": set(itertools.product((0.001, 0.005, 0.01), (0.1, 0.5, 1.0))),
    "basin_ridge": set(itertools.product((0.003, 0.004, 0.006, 0.008), (0.7, 0.9, 1.1, 1.3))),
    "basin_geological": set(itertools.product((0.01, 0.02), (0.5, 1.0, 1.5))),
    "basin_refined": set(itertools.product((0.0075, 0.01, 0.015, 0.02), (0.5, 0.7, 1.0, 1.5))),
    "basin_conversations": {(0.01, 1.0), (0.015, 0.5), (0.01, 0.7)},
}
SEEDS = {"basin_conversations": {42, 12345, 67890}}


def jobs(study: str) -> list[list[str]]:
    """The overrides of every job of `python train.py -m experiment=<study>`."""
    params = OmegaConf.load(PROJECT / "configs" / "experiment" / f"{study}.yaml").hydra.sweeper.params
    axes = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    values = [axis.sweep_string_iterator() if axis.is_sweep_override() else [axis.value()] for axis in axes]
    points = itertools.product(*values)
    return [[f"{axis.key_or_group}={value}" for axis, value in zip(axes, point, strict=True)] for point in points]


def cell(config: TrainConfig) -> tuple[float, float]:
    chrono: Any = config.chrono
    return chrono.temperature.eta, chrono.pressure_scale


@pytest.mark.parametrize("study", CELLS)
def test_a_grid_has_every_cell_of_its_study_once(study: str, compose: Callable[..., Any]) -> None:
    points = jobs(study)
    seeds = SEEDS.get(study, {0})
    assert len(points) == len(CELLS[study]) * len(seeds)
    if study == "basin_conversations":
        configs = [parse(compose(f"experiment={study}", *point)) for point in points]
        assert {(cell(config), config.seed) for config in configs} == set(itertools.product(CELLS[study], seeds))
        return
    values = {tuple(float(override.partition("=")[2]) for override in point) for point in points}
    assert values == {(*pair, 0.0) for pair in CELLS[study]}


@pytest.mark.parametrize("study", CELLS)
def test_a_multirun_checks_every_cell_beforehand_and_the_command_line_replaces_an_axis(study: str) -> None:
    params = OmegaConf.load(PROJECT / "configs" / "experiment" / f"{study}.yaml").hydra.sweeper.params
    overrides = {"task": [f"experiment={study}", "seed=8,9"]}
    looked_at = list(points(OmegaConf.create({"hydra": {"sweeper": {"params": params}, "overrides": overrides}})))
    assert len(looked_at) == 2 * len(CELLS[study])
    assert {override for point in looked_at for override in point if override.startswith("seed")} == {
        "seed=8",
        "seed=9",
    }
    assert all(f"experiment={study}" in point for point in looked_at)


@pytest.mark.parametrize("study", CELLS)
def test_a_cell_is_the_law_as_it_was_published(study: str, compose: Callable[..., Any]) -> None:
    config = parse(compose(f"experiment={study}", *jobs(study)[-1]))
    chrono: Any = config.chrono
    assert cell(config) in CELLS[study]
    assert (chrono.law, chrono.actuation, chrono.coherence) == ("documented", "logits", "phase")
    assert chrono.half_life_steps is None
    assert (chrono.clocks.micro_period, chrono.clocks.macro_period) == (5, 20)
    assert (chrono.temperature.kind, chrono.temperature.eta_global) == ("documented", None)


def test_the_first_lines_say_how_many_cells_a_claim_was_chosen_from() -> None:
    for study, cells in CELLS.items():
        comment = (PROJECT / "configs" / "experiment" / f"{study}.yaml").read_text().splitlines()[1]
        assert f"{len(cells)} cells" in comment
        assert "claimed" in comment


def test_a_grid_runs_as_a_multirun_and_can_be_narrowed(
    command: Callable[..., Outcome], tiny: list[str], tmp_path: Path
) -> None:
    narrowed = ("chrono.pressure_scale=0.5", "trainer.max_steps=2", "hydra.sweep.dir=sweep")
    outcome = command("-m", *tiny, "experiment=basin_geological", *narrowed)
    assert outcome.code == 0, outcome.stderr
    runs = sorted(path for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert [cell(load_config(run / "config.yaml")) for run in runs] == [(0.01, 0.5), (0.02, 0.5)]
