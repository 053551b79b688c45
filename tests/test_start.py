"""A start: what is not loaded before the first step, and the garbage collector, which waits until then."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest
from training_runs import PROJECT, Outcome

UNUSED = {"matplotlib", "plotly", "transformers", "datasets", "wandb", "tensorboard", "rich", "pandas"}

AT_THE_FIRST_STEP = """
import gc, json, os, runpy, sys

def report(*arguments):
    print(json.dumps({"modules": sorted(sys.modules), "collects": gc.isenabled()}), flush=True)
    os._exit(0)

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "chronomoe.training.module":  # torch is loaded, and the run not yet assembled
            from torch.optim.optimizer import register_optimizer_step_post_hook
            sys.meta_path.remove(self)
            register_optimizer_step_post_hook(report)

sys.meta_path.insert(0, Watch())
train = sys.argv.pop(1)
runpy.run_path(train, run_name="__main__")
"""


@pytest.mark.slow
def test_nothing_that_only_draws_or_reports_is_loaded_before_the_first_step(
    python: Callable[..., Any], tiny: list[str]
) -> None:
    process = python("-c", AT_THE_FIRST_STEP, str(PROJECT / "train.py"), *tiny)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    state = json.loads(stdout.splitlines()[-1])
    loaded = {name.split(".")[0] for name in state["modules"]}
    assert {"torch", "lightning", "chronomoe"} <= loaded
    assert not UNUSED & loaded
    assert not [name for name in state["modules"] if name.startswith(("chronomoe.pretrained", "chronomoe.report"))]
    assert state["collects"]


@pytest.mark.slow
def test_what_was_left_out_of_lightning_can_be_imported_afterwards(python: Callable[..., Any]) -> None:
    code = """
from chronomoe.training.lightning_alone import import_lightning
import_lightning()
import sys
assert "lightning" in sys.modules and "matplotlib" not in sys.modules
from lightning_utilities.core.imports import RequirementCache
assert RequirementCache("matplotlib"), "asked anew, it is there"
from matplotlib.figure import Figure
Figure().add_subplot().plot([1, 2])
import lightning.pytorch.callbacks
import_lightning()
"""
    process = python("-c", code)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr


@pytest.mark.parametrize("arguments", [["--help"], ["model.dmi=8"]], ids=["help", "typo"])
def test_a_command_that_trains_nothing_leaves_the_collector_on(
    command: Callable[..., Outcome], arguments: list[str]
) -> None:
    assert gc.isenabled()
    command(*arguments)
    assert gc.isenabled()


def test_training_turns_the_collector_on_again(
    command: Callable[..., Outcome], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []

    def fit(*arguments: Any, **options: Any) -> None:
        states.append(gc.isenabled())
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.Trainer.fit", fit)
    assert command(*tiny).code == 130
    assert states == [True]
