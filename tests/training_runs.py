"""Fixtures of everything that trains: a small text, a small config, and ways to run it inside and outside this
process."""

from __future__ import annotations

import csv
import json
import os
import random
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

PROJECT = Path(__file__).parents[1]

GRAMMAR = {
    "article": ["the", "a", "every", "no"],
    "adjective": ["slow", "quick", "idle", "heavy", "quiet", "loud"],
    "noun": ["router", "expert", "token", "clock", "lens", "field", "layer", "signal"],
    "verb": ["sends", "holds", "weighs", "follows", "forgets", "counts"],
}


def sentence(rng: random.Random) -> str:
    """Enough order for a tiny model to learn something in twenty steps."""
    parts = ("article", "adjective", "noun", "verb", "article", "noun")
    return " ".join(rng.choice(GRAMMAR[part]) for part in parts) + "."


@pytest.fixture(scope="session")
def prose_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of seeded sentences, about 60 kB."""
    folder = tmp_path_factory.mktemp("prose")
    rng = random.Random(0)
    for number in range(40):
        text = "\n".join(sentence(rng) for _ in range(40))
        (folder / f"{number:02}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(prose_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes half a second: 2 layers x 4 experts on `prose_folder`, 8 steps of 4 x 32 tokens."""
    model = {"vocab_size": 320, "dim": 32, "hidden_dim": 48, "num_heads": 2, "num_kv_heads": 1, "num_experts": 4}
    data = {
        "path": prose_folder, "cache_dir": tmp_path_factory.mktemp("cache"), "vocab_size": 300,
        "seq_len": 32, "batch_size": 4, "val_sequences": 4,
    }  # fmt: skip
    trainer = {"max_steps": 8, "precision": "32-true"}
    groups = {"model": model, "data": data, "trainer": trainer}
    pairs = [f"{group}.{key}={value}" for group, values in groups.items() for key, value in values.items()]
    return ["data=text", "trainer=cpu", *pairs]


@pytest.fixture(scope="session")
def compose() -> Callable[..., Any]:
    """compose(*overrides): the composed, unchecked config, as `train.py` sees it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from chronomoe.config import register

    register()

    def compose(*overrides: str) -> Any:
        with initialize_config_dir(str(PROJECT / "configs"), version_base="1.3"):
            return hydra_compose("train", list(overrides))

    return compose


@pytest.fixture(scope="session")
def configure(compose: Callable[..., Any], tiny: list[str]) -> Callable[..., Any]:
    """configure(*overrides): the checked TrainConfig of the tiny run with overrides."""
    from chronomoe.config import parse

    return lambda *overrides: parse(compose(*tiny, *overrides))


class Finished:
    """What a run left in its directory, read back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.directory / "summary.json").read_text())

    @property
    def rows(self) -> list[dict[str, str]]:
        """Rows of `metrics.csv`, without what depends on the clock on the wall."""
        with (self.directory / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: value for key, value in row.items() if not key.startswith("throughput/")} for row in rows]

    def column(self, name: str) -> list[float]:
        """The cells of one column that are filled."""
        return [float(row[name]) for row in self.rows if row.get(name)]

    def checkpoint(self, name: str = "last") -> dict[str, Any]:
        return torch.load(self.directory / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)

    @property
    def controller(self) -> dict[str, Any]:
        """What the Chronovisor's callback saved."""
        return self.checkpoint()["callbacks"]["ChronovisorCallback"]

    @property
    def routing(self) -> dict[str, np.ndarray]:
        with np.load(self.directory / "routing.npz") as arrays:
            return {name: arrays[name] for name in arrays.files}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two nested containers of tensors and plain values are not bitwise equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        alike = a.dtype == b.dtype and a.shape == b.shape
        return [] if alike and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for key in a.keys() | b.keys() for d in differences(a.get(key), b.get(key), f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out figures and report, which take longer than a tiny training."""
    monkeypatch.setattr("chronomoe.study.figures.draw_run", lambda run: [])
    monkeypatch.setattr("chronomoe.study.report.write_report", lambda run: None)


@pytest.fixture
def train(configure: Callable[..., Any], tmp_path: Path, undrawn: None) -> Callable[..., Finished]:
    """train(*overrides, into=name): the tiny run in this process."""

    def train(*overrides: str, into: str = "run") -> Finished:
        from chronomoe.run import run

        run(configure(*overrides), tmp_path / into)
        return Finished(tmp_path / into)

    return train


@pytest.fixture(scope="session")
def trained_run(configure: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """trained_run(*overrides): the directory of a tiny run in this process, its figures left out."""

    def make(*overrides: str) -> Path:
        from chronomoe.run import run

        directory = tmp_path_factory.mktemp("trained") / "run"
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("chronomoe.run.draw", lambda run_dir: None)
            run(configure(*overrides), directory)
        return directory

    return make


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def outcome_of(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """outcome_of(main, *arguments): `python -m chronomoe.… key=value …` in this process."""
    from chronomoe.entry import guarded

    def outcome_of(main: Callable[[], Any], *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [main.__module__, *arguments])
        capfd.readouterr()
        code = 0
        try:
            guarded(main)
        except SystemExit as left:
            code = int(left.code or 0)
        return Outcome(code, *capfd.readouterr())

    return outcome_of


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], undrawn: None
) -> Callable[..., Outcome]:
    """command(*arguments): `python train.py …` in the working directory `tmp_path`, but without a new process."""
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # `guarded` sets it for good

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(PROJECT / "train.py"), run_name="__main__")
        except SystemExit as left:
            code = int(left.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return Outcome(code, *capfd.readouterr())

    return command


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """python(*arguments): a real Python process in `tmp_path` that finds the project; its pipes are text."""

    def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=tmp_path, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip

    return python
