"""The files of configs/sweep ask what they say they ask: their values, their seeds, their baseline in every stratum;
each of their points is a config that can run; and a plain Hydra multirun makes the same grid of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra.core.global_hydra import GlobalHydra
from sweep_runs import SweepFolder
from training_runs import PROJECT, Finished, Outcome, differences

from chronomoe.before_run import points as points_of_multirun
from chronomoe.config import TrainConfig, config_hash, parse, register
from chronomoe.sweep.axes import grid, read_axes
from chronomoe.sweep.command import check_sweep
from chronomoe.sweep.help import first_comment
from chronomoe.sweep.points import Composer, Point, beside, without_repeats

FILES = sorted(path.stem for path in (PROJECT / "configs" / "sweep").glob("*.yaml"))
SEEDS = [1, 2, 3, 4, 5]
LAWS = [
    *("off", "chronovisor", "documented", "sign", "centered_sign", "proportional", "smebu", "quantile", "bip"),
    "sinkhorn",
]

FEW_LAWS = ("off", "chronovisor", "smebu", "quantile")
KINDS = (("mixtral", "topk_softmax"), ("switch", "softmax"), ("mixtral", "sigmoid"))

ASKED: dict[str, tuple[Callable[[TrainConfig], Any], list[Any], list[int]]] = {
    "pressure_scale": (
        lambda c: "off" if c.chrono.law == "off" else c.chrono.pressure_scale,
        ["off", 0.0, 0.01, 0.05, 0.1, 0.5],
        SEEDS,
    ),
    "clock_periods": (
        lambda c: "off" if c.chrono.law == "off" else (c.chrono.clocks.micro_period, c.chrono.clocks.macro_period),
        ["off", (1, 1), (3, 10), (5, 20), (10, 40)],
        SEEDS,
    ),
    "gamma": (
        lambda c: "off" if c.chrono.law == "off" else c.chrono.gamma,
        ["off", 0.0, 0.05, 0.1, 0.2, 0.4, 0.8],
        SEEDS,
    ),
    "basin": (
        lambda c: (c.chrono.temperature.eta if c.chrono.temperature.kind != "off" else "off", c.chrono.pressure_scale),
        [("off", 0.0), *((eta, p) for eta in (0.005, 0.01, 0.015, 0.02) for p in (0.1, 0.5, 0.7, 1.0))],
        [1, 2, 3],
    ),
    "laws": (lambda c: c.chrono.law, LAWS, SEEDS),
    "scaled_4x16": (
        lambda c: (c.model.num_layers, c.model.num_experts, c.chrono.law),
        [(4, 16, law) for law in FEW_LAWS],
        SEEDS,
    ),
    "switch_transfer": (
        lambda c: (c.router.kind, c.router.top_k, c.chrono.law),
        [(*router, law) for router in (("mixtral", 2), ("switch", 1)) for law in FEW_LAWS],
        SEEDS,
    ),
    "routers": (
        lambda c: (c.router.kind, c.router.gate, c.chrono.law),
        [("expert_choice", "softmax", "off"), *((*kind, law) for kind in KINDS for law in ("off", "chronovisor"))],
        SEEDS,
    ),
    "hybrid": (
        lambda c: ("".join(c.model.kinds), c.router.load_balancing_weight, c.chrono.law),
        [(blocks, weight, "chronovisor") for blocks in ("TTTT", "RRRT") for weight in (0.0, 0.01)],
        SEEDS,
    ),
}  # fmt: skip
"""Sweep -> what of a config it asks about, the values of that, and the seeds of each."""


class Swept:
    def __init__(self, composer: Composer, name: str) -> None:
        self.name = name
        self.config, params = composer.shared([f"sweep={name}"])
        self.axes, _ = read_axes(params, [])
        self.points: list[Point] = []
        if self.config.sweep.sampler == "grid":
            composed = [
                composer.point([f"sweep={name}"], overrides, Path("s"))
                for overrides in [*beside(self.axes, self.config.sweep.arms), *grid(self.axes)]
            ]
            self.points = without_repeats(composed, self.config.sweep.arms)


@pytest.fixture(scope="module")
def swept() -> Callable[[str], Swept]:
    """swept(name): a file of configs/sweep with all its points, composed and checked once."""
    known: dict[str, Swept] = {}

    def swept(name: str) -> Swept:
        if name not in known:
            GlobalHydra.instance().clear()
            register()
            with Composer() as composer:
                known[name] = Swept(composer, name)
        return known[name]

    return swept


def test_the_files_are_those_that_are_tested_here() -> None:
    assert sorted([*ASKED, "search"]) == FILES


@pytest.mark.parametrize("name", ASKED)
def test_a_sweep_holds_every_value_with_every_seed_and_nothing_else(swept: Callable[[str], Swept], name: str) -> None:
    what, values, seeds = ASKED[name]
    found = [(what(point.config), point.config.seed) for point in swept(name).points]
    assert sorted(found, key=str) == sorted(((value, seed) for value in values for seed in seeds), key=str)


@pytest.mark.parametrize("name", FILES)
def test_a_sweep_is_sound_and_says_in_its_first_line_what_it_is(swept: Callable[[str], Swept], name: str) -> None:
    sweep = swept(name)
    check_sweep(sweep.config, sweep.axes)
    assert sweep.config.sweep.name == name
    text = (PROJECT / "configs" / "sweep" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    if sweep.points:
        assert f"{len(sweep.points)} " in text.partition("\nsweep:")[0]
    assert len(first_comment(text)) > 20


@pytest.mark.parametrize("name", ASKED)
def test_the_baseline_stands_in_every_stratum_with_every_seed_and_is_the_plain_one(
    swept: Callable[[str], Swept], name: str
) -> None:
    sweep = swept(name)
    within = [f"{key.partition('.')[0]}=" for key in sweep.config.sweep.within]
    strata: dict[str, list[bool]] = {}
    for point in sweep.points:
        stratum = " ".join(each for each in point.overrides if each.startswith(("seed=", *within)))
        arm = " ".join(each for each in point.overrides if not each.startswith(("seed=", *within)))
        is_baseline = arm == sweep.config.sweep.baseline
        strata.setdefault(stratum, []).append(is_baseline)
        if is_baseline and name == "hybrid":  # whose arms are models
            assert set(point.config.model.kinds) == {"T"}
        elif is_baseline:
            law = point.config.chrono
            assert law.law == "off" or (law.pressure_scale == 0 and law.temperature.kind == "off")
    assert len(strata) >= 3
    for stratum, arms in strata.items():
        assert sum(arms) == 1 or stratum.startswith("router=expert_choice"), stratum  # which stands alone


def test_the_basins_baseline_is_the_plain_model_bit_for_bit(
    train: Callable[..., Finished], swept: Callable[[str], Swept]
) -> None:
    baseline = str(swept("basin").config.sweep.baseline)
    steered = train("sweep=basin", *baseline.split(), into="baseline")
    plain, basin = train("chrono=off", into="off"), train("sweep=basin", into="basin")
    assert differences(steered.checkpoint()["state_dict"], plain.checkpoint()["state_dict"]) == []
    assert differences(basin.checkpoint()["state_dict"], plain.checkpoint()["state_dict"]) != []


@pytest.mark.parametrize("name", ASKED)
def test_a_plain_multirun_makes_the_same_grid(swept: Callable[[str], Swept], name: str) -> None:
    """Without the arms beside it, which are the sweep's own."""
    sweep = swept(name)
    GlobalHydra.instance().clear()
    with Composer():
        config = hydra_compose("train", [f"sweep={name}"], return_hydra_config=True)
        jobs = list(points_of_multirun(config))
        assert [job[:-1] for job in jobs] == list(grid(sweep.axes))
        assert {job[-1] for job in jobs} == {f"sweep={name}"}
        hashes = {point.name: point.hash for point in sweep.points}
        for job in (jobs[0], jobs[len(jobs) // 2], jobs[-1]):
            assert config_hash(parse(hydra_compose("train", job))) == hashes[" ".join(job[:-1])]


def test_a_plain_multirun_of_a_sweep_file_leaves_the_runs_that_the_sweep_leaves(
    command: Callable[..., Outcome], sweep: Callable[..., Outcome], folder: SweepFolder, tiny: list[str], tmp_path: Path
) -> None:
    few = ("sweep=gamma", "chrono.gamma=0,0.2", "seed=1")
    outcome = command("-m", *tiny, *few, f"hydra.sweep.dir={tmp_path / 'multirun'}")
    assert outcome.code == 0, outcome.stderr
    assert sweep(*few, "sweep.name=s").code == 0
    assert folder.column("overrides") == ["chrono=off seed=1", "chrono.gamma=0 seed=1", "chrono.gamma=0.2 seed=1"]
    for job, name in enumerate(folder.column("overrides")[1:]):
        plain, point = Finished(tmp_path / "multirun" / str(job)), folder.runs[name]
        assert plain.summary["config_hash"] == point.summary["config_hash"]
        assert plain.rows == point.rows
        assert differences(plain.checkpoint()["state_dict"], point.checkpoint()["state_dict"]) == []


def test_a_search_is_no_plain_multirun(command: Callable[..., Outcome], tiny: list[str], tmp_path: Path) -> None:
    outcome = command("-m", *tiny, "sweep=search", f"hydra.sweep.dir={tmp_path / 'multirun'}")
    assert outcome.code == 2
    assert outcome.stderr == (
        "error: chrono.pressure_scale=tag(log, interval(0.01, 1.0)): a multirun needs single values; search with "
        "python sweep.py\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_search_file_searches(sweep: Callable[..., Outcome], folder: SweepFolder) -> None:
    assert sweep("sweep=search", "sweep.name=s", "sweep.trials=2").code == 0
    assert folder.column("status") == ["done", "done"]
    for row in folder.results:
        assert 0.01 <= float(row["chrono.pressure_scale"]) <= 1.0
        assert 0.0 <= float(row["chrono.gamma"]) <= 0.8
        assert row["chrono.clocks.macro_period"] in {"1", "4", "10"}
