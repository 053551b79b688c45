"""Hybrid models under every router and every law, and stopped and resumed, by the same training as any other."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import Finished, differences

from chronomoe.chrono.laws import LAWS
from chronomoe.evaluate import EvaluateSettings, evaluate
from chronomoe.generate import load_model
from chronomoe.settings import Stopped
from chronomoe.study.figures import draw_run
from chronomoe.study.run import Run
from chronomoe.training.telemetry import Telemetry

Train = Callable[..., Finished]
HYBRID = (
    "model.schedule=RRT", "model.num_layers=3", "model.dim=64", "model.activation=gelu", "model.norm=layer",
    "trainer.max_steps=3",
)  # fmt: skip
ASSIGNMENTS = 4 * 32 * 2
"""Of a block and step: sequences, tokens, experts per token."""
ROUTERS = {
    "the hybrids' own": ["router=cdrmix"],
    "deepseek": ["router=deepseek"],
    "switch": ["router=switch"],
    "sigmoid": ["router.gate=sigmoid"],
    "expert choice": ["router=expert_choice", "chrono=off"],
    "expert choice that looks ahead": ["router=expert_choice", "router.causal=false", "chrono=off"],
    "documents apart": ["router=cdrmix", "model.document_mask=true"],
    "dense": ["model.dense=true", "chrono=off"],
}


def losses(run: Finished) -> list[float]:
    return run.column("train/loss")


@pytest.mark.parametrize("law", LAWS)
def test_every_law_steers_every_block_of_a_hybrid(train: Train, law: str, recorded_run: Callable[..., Path]) -> None:
    trace = [f"chrono.trace={recorded_run(3, 4)}"] if law in ("replay", "sham") else []
    run = train(*HYBRID, f"chrono={law}", *trace)
    counts_NLE = run.routing["tokens_per_expert"]
    assert counts_NLE.shape == (3, 3, 4)
    assert (counts_NLE.sum(axis=-1) == ASSIGNMENTS).all()
    assert np.isfinite(losses(run)).all()
    assert len(losses(run)) == 3
    field = np.abs(run.routing["bias"]).sum(axis=(0, 2)) + np.abs(run.routing["log_temperature"]).sum(axis=(0, 2))
    if law in ("sign", "centered_sign", "proportional", "chronovisor", "quantile", "smebu", "replay"):
        assert (field > 0).all()
    if law == "off":
        assert (field == 0).all()


@pytest.mark.parametrize("overrides", ROUTERS.values(), ids=ROUTERS.keys())
def test_every_router_trains_a_hybrid(train: Train, overrides: list[str]) -> None:
    run = train(*HYBRID, *overrides, "trainer.max_steps=8", "optim.lr=1e-2")
    assert np.isfinite(losses(run)).all()
    assert losses(run)[-1] < losses(run)[0] - 0.1
    saved = run.checkpoint()["state_dict"]
    assert all(tensor.isfinite().all() for tensor in saved.values())
    model, _ = load_model(run.directory, "last")
    assert [type(block).__name__ for block in model.blocks] == ["RwkvBlock", "RwkvBlock", "TransformerBlock"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_stopped_and_resumed_hybrid_is_the_one_that_was_never_stopped(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    overrides = (
        *HYBRID,
        "router=cdrmix",
        "router.jitter=0.01",
        f"trainer.precision={precision}",
        "trainer.max_steps=7",
    )
    whole = train(*overrides, into="whole")
    log_row = Telemetry._log_row

    def stopping(self: Telemetry, trainer: Any, module: Any, now: int) -> None:
        log_row(self, trainer, module, now)
        if now == 3:
            monkeypatch.setattr(Telemetry, "_log_row", log_row)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Telemetry, "_log_row", stopping)
    with pytest.raises(Stopped):
        train(*overrides, into="stopped")
    assert torch.load(tmp_path / "stopped" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert len(losses(whole)) == 7
    assert losses(resumed) == losses(whole)
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    ours, theirs = whole.checkpoint(), resumed.checkpoint()
    assert differences({part: ours[part] for part in parts}, {part: theirs[part] for part in parts}) == []
    assert differences(whole.controller, resumed.controller) == []


def test_the_micro_batches_that_a_step_is_cut_into_are_all_counted(train: Train) -> None:
    run = train(*HYBRID, "router=cdrmix", "trainer.accumulate_grad_batches=2")
    assert (run.routing["tokens_per_expert"].sum(axis=-1) == ASSIGNMENTS).all()


def test_the_balance_of_a_whole_step_looks_ahead_in_a_hybrid_too(train: Train) -> None:
    scope = ["router=cdrmix", "trainer.accumulate_grad_batches=2", "router.load_balancing_scope=global_batch"]
    run = train(*HYBRID, *scope)
    assert (run.routing["tokens_per_expert"].sum(axis=-1) == ASSIGNMENTS).all()
    assert np.isfinite(losses(run)).all()


def test_every_metric_reads_every_block_of_a_hybrid(train: Train) -> None:
    run = train(*HYBRID, "router=cdrmix", "chrono.phi=true", "trainer.max_steps=6")
    layers = [f"router/layer_{layer:02}/max_vio" for layer in range(3)]
    for name in ("router/load_entropy", "router/dropped_frac", "chrono/follow", "chrono/phi_excess", *layers):
        found = run.column(name)
        assert len(found) == 6, name
        assert np.isfinite(found[1:]).all(), name  # a step has no field to follow before the first tick
    settings = EvaluateSettings(run=str(run.directory), permutations=199, resamples=1000)
    trained = evaluate(run.directory, settings)["trained"]
    assert len(trained["layers"]) == 3
    assert np.isfinite([layer["expert_information"] for layer in trained["layers"]]).all()
    assert trained["mean"]["dropped_frac"] == 0  # evaluation drops nothing
    assert {path.name for path in draw_run(Run.load(run.directory))} >= {"loss.png", "usage.png", "control.png"}
