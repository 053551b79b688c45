"""A run: what it leaves, what changes nothing about it, and how it ends when it cannot go on."""

from __future__ import annotations

import errno
import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import PROJECT, Finished, Outcome, differences

from chronomoe.model.sizing import size_of
from chronomoe.settings import RunFailed

Train = Callable[..., Finished]

SUMMARY_KEYS = {
    "status", "steps", "tokens", "val_loss", "val_perplexity", "unigram_perplexity", "max_vio_early", "max_vio_late",
    "load_entropy", "dead_expert_frac", "tokens_per_sec", "wall_seconds", "num_params", "num_active_params",
    "config_hash", "versions", "git_revision", "error", "val_max_vio", "val_load_entropy", "val_token_entropy",
    "val_dead_expert_frac", "expert_information",
}  # fmt: skip


def test_a_run_leaves_everything_it_promises(configure: Callable[..., Any], tmp_path: Path) -> None:
    from chronomoe.run import run

    run(configure(), tmp_path / "run")
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left >= {
        "config.yaml", "metrics.csv", "routing.npz", "checkpoints", "summary.json", "figures", "report.html",
        "tokenizer",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert any((tmp_path / "run" / "figures").iterdir())


def test_the_summary_has_exactly_the_promised_keys_and_true_numbers(
    train: Train, configure: Callable[..., Any]
) -> None:
    finished = train("trainer.eval_every_steps=3")
    summary = finished.summary
    assert summary.keys() == SUMMARY_KEYS
    assert (summary["status"], summary["error"], summary["steps"]) == ("done", None, 8)
    assert summary["tokens"] == 8 * 4 * 32 == finished.column("train/tokens")[-1]
    assert summary["val_loss"] == finished.column("val/loss")[-1]
    assert summary["val_perplexity"] == pytest.approx(math.exp(summary["val_loss"]))
    max_vio = finished.column("router/max_vio")
    assert summary["max_vio_early"] == pytest.approx(np.mean(max_vio[: 8 // 3]), rel=1e-5)
    assert summary["max_vio_late"] == pytest.approx(np.mean(max_vio), rel=1e-5)  # fewer than 50 steps: all of them
    assert summary["load_entropy"] == finished.column("router/load_entropy")[-1]
    for key in ("max_vio", "load_entropy", "token_entropy"):
        assert summary[f"val_{key}"] == finished.column(f"val/{key}")[-1]
    assert summary["expert_information"] == finished.column("val/expert_information")[-1] > 0
    stored = sum(t.numel() for n, t in finished.checkpoint()["state_dict"].items() if not n.endswith("_LE"))
    assert summary["num_params"] == stored
    unused = 2 * 2 * 3 * 32 * 48  # layers x experts a token does not visit x three matrices
    assert summary["num_active_params"] == stored - unused


@pytest.mark.parametrize(("max_steps", "evaluated"), [(2, [2]), (5, [3, 5]), (6, [3, 6])])
def test_a_run_ends_with_an_evaluation_of_its_final_weights(train: Train, max_steps: int, evaluated: list[int]) -> None:
    finished = train(f"trainer.max_steps={max_steps}", "trainer.eval_every_steps=3")
    assert [int(row["step"]) for row in finished.rows if row.get("val/loss")] == evaluated


def test_the_same_seed_gives_the_same_run_and_another_seed_another(train: Train) -> None:
    one, same, other = train(into="a"), train(into="b"), train("seed=1", into="c")
    assert differences(one.checkpoint()["state_dict"], same.checkpoint()["state_dict"]) == []
    assert one.rows == same.rows
    assert one.rows != other.rows


def test_training_learns_more_than_the_frequency_of_tokens(train: Train) -> None:
    summary = train("trainer.max_steps=150", "optim.lr=1e-2", "data.batch_size=8").summary
    assert summary["val_perplexity"] < summary["unigram_perplexity"] / 2


def test_a_neutral_field_is_bitwise_the_uncontrolled_run(train: Train) -> None:
    off = train("chrono=off", into="off")
    neutral = train("chrono.pressure_scale=0", "chrono.gamma=0", into="neutral")
    controlled = train(into="controlled")
    assert off.column("train/loss") == neutral.column("train/loss")
    assert differences(off.checkpoint()["state_dict"], neutral.checkpoint()["state_dict"]) == []
    assert off.column("train/loss") != controlled.column("train/loss")


def test_evaluation_changes_nothing(train: Train) -> None:
    often, never = train("trainer.eval_every_steps=1", into="often"), train("trainer.eval_every_steps=8", into="never")
    assert len(often.column("val/loss")) == 8
    assert often.column("train/loss") == never.column("train/loss")
    assert differences(often.checkpoint()["state_dict"], never.checkpoint()["state_dict"]) == []
    assert differences(often.controller, never.controller) == []


def test_logging_less_often_changes_nothing(train: Train) -> None:
    every, seldom = train(into="every"), train("trainer.log_every_steps=3", into="seldom")
    assert differences(every.checkpoint()["state_dict"], seldom.checkpoint()["state_dict"]) == []
    assert [int(row["step"]) for row in seldom.rows if row["train/loss"]] == [3, 6, 8]
    assert seldom.column("train/loss") == [every.column("train/loss")[step - 1] for step in (3, 6, 8)]


def test_micro_batches_do_not_change_the_step(train: Train) -> None:
    whole = train("trainer.accumulate_grad_batches=1", into="1")
    for parts in (2, 4):
        split = train(f"trainer.accumulate_grad_batches={parts}", into=str(parts))
        np.testing.assert_allclose(split.column("train/loss"), whole.column("train/loss"), rtol=1e-4)
        np.testing.assert_array_equal(split.routing["tokens_per_expert"][:3], whole.routing["tokens_per_expert"][:3])
        np.testing.assert_allclose(split.routing["bias"][:3], whole.routing["bias"][:3], atol=1e-7)
        assert split.routing["tokens_per_expert"].sum() == whole.routing["tokens_per_expert"].sum()


@pytest.mark.parametrize("size", ["mixtral_2x8", "mixtral_4x16", "mixtral_8x7b"])
def test_the_dense_baseline_has_the_active_parameters_of_the_mixture_without_its_routers(
    compose: Callable[..., Any], size: str
) -> None:
    from chronomoe.config import parse

    mixture, dense = (parse(compose(f"model={size}", *more)) for more in ((), ("experiment=dense",)))
    routers = mixture.model.num_layers * mixture.model.num_experts * mixture.model.dim
    active = [size_of(config.model, config.router).active for config in (mixture, dense)]
    assert active[1] == active[0] - routers
    assert size_of(dense.model, dense.router).stored == active[1]


def test_a_dense_model_trains_and_reports_no_routing(train: Train) -> None:
    finished = train("experiment=dense")
    assert finished.summary["status"] == "done"
    assert finished.summary["max_vio_late"] is None
    assert not any(key.startswith(("router/", "chrono/")) for key in finished.rows[0])
    assert not (finished.directory / "routing.npz").exists()


def assert_failed(run_dir: Path, *fragments: str) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "\n" not in summary["error"]
    for fragment in fragments:
        assert fragment in summary["error"]


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_is_finite(
    command: Callable[..., Outcome], tiny: list[str], tmp_path: Path
) -> None:
    wild = ("optim.lr=1e30", "optim.warmup_frac=0", "trainer.checkpoint_every_steps=1", "trainer.log_every_steps=100")
    outcome = command(*tiny, *wild, "hydra.run.dir=run")
    assert outcome.code == 1
    error = outcome.stderr.splitlines()[-1]
    assert error.startswith("error: train/")
    assert "optim.lr" in error
    assert "Traceback" not in outcome.stderr
    assert_failed(tmp_path / "run", "optim.lr")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        weights = torch.load(checkpoint, weights_only=True)["state_dict"].values()
        assert all(tensor.isfinite().all() for tensor in weights)


def test_a_best_checkpoint_is_never_of_weights_that_are_not_finite(train: Train, tmp_path: Path) -> None:
    wild = ("optim.lr=1e30", "optim.warmup_frac=0", "trainer.eval_every_steps=2", "trainer.log_every_steps=100")
    with pytest.raises(RunFailed):
        train(*wild)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


def test_a_collapsed_routing_ends_the_run_when_asked(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chronomoe.model.lm import LanguageModel

    original = LanguageModel.__init__

    def first_two_experts_only(self: LanguageModel, *args: Any) -> None:
        original(self, *args)
        self.expert_bias_LE[:, 2:] = -1e9

    monkeypatch.setattr(LanguageModel, "__init__", first_two_experts_only)
    monkeypatch.setattr("chronomoe.chrono.laws.off.neutral", lambda like: _frozen(like))
    with pytest.raises(RunFailed, match=r"collapsed.*trainer.abort_idle_steps=3"):
        train("chrono=off", "trainer.abort_idle_steps=3")
    assert_failed(tmp_path / "run", "trainer.abort_idle_steps=3", "step 3")


def _frozen(like_LE: torch.Tensor) -> Any:
    from chronomoe.chrono.laws.law import Field

    bias_LE = torch.zeros_like(like_LE)
    bias_LE[:, 2:] = -1e9
    return Field(bias_LE, torch.zeros_like(like_LE))


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint(
    command: Callable[..., Outcome], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = torch.save, []

    def full_at_the_third(checkpoint: Any, file: Any) -> None:
        saved.append(checkpoint["global_step"])
        if len(saved) == 3:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr("torch.save", full_at_the_third)
    outcome = command(*tiny, "trainer.checkpoint_every_steps=2", "hydra.run.dir=run")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.stderr
    assert_failed(tmp_path / "run", "No space left on device", "the previous one is untouched")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_a_limit_on_file_sizes_ends_the_run_in_one_line(
    python: Callable[..., Any], tiny: list[str], tmp_path: Path
) -> None:
    limit = 200_000  # the checkpoint has about 800 kB
    process = python(
        str(PROJECT / "train.py"), *tiny, "hydra.run.dir=run",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: could not save")
    assert_failed(tmp_path / "run", "could not save")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_disk_on_which_nothing_can_be_written_ends_the_run_with_its_own_error(
    command: Callable[..., Outcome], tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some file")

    monkeypatch.setattr("torch.save", full)
    monkeypatch.setattr("chronomoe.chrono.record.np.savez_compressed", full)
    monkeypatch.setattr("chronomoe.summary.write_summary", full)
    outcome = command(*tiny, "hydra.run.dir=run")
    assert outcome.code == 1
    assert "Traceback" not in outcome.stderr
    assert "No space left on device" in outcome.stderr.splitlines()[-1]
