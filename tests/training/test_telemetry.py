"""What a logged row says: against the batches, the schedule and an evaluation done by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from training_runs import Finished

from chronomoe.data.datamodule import LanguageDataModule
from chronomoe.data.packing import prepare_corpus
from chronomoe.generate import load_model
from chronomoe.model.lm import LanguageModel, number_documents
from chronomoe.training.optimizer import lr_factor

Train = Callable[..., Finished]


def mean_loss(model: LanguageModel, batches: list[dict[str, torch.Tensor]], end: int | None) -> float:
    """Mean cross-entropy over all tokens of all batches, in nats."""
    with torch.no_grad():
        losses = [
            cross_entropy(
                model(
                    batch["input_ids"],
                    document_BS=None if end is None else number_documents(batch["input_ids"], end),
                ).logits_BSV.flatten(0, 1),
                batch["targets"].flatten(),
                reduction="none",
            )
            for batch in batches
        ]
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_loss_is_that_of_the_initial_weights_on_the_first_batch(
    train: Train, configure: Callable[..., Any], accumulate: int
) -> None:
    config = configure(f"trainer.accumulate_grad_batches={accumulate}")
    finished = train(f"trainer.accumulate_grad_batches={accumulate}")
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size)
    data = LanguageDataModule(config.data, corpus=corpus, seed=0, max_steps=8)
    torch.manual_seed(0)
    model = LanguageModel(config.model, config.router).eval()
    end = corpus.eos_id if config.model.document_mask else None
    first = next(iter(data.train_dataloader()))
    assert finished.column("train/loss")[0] == pytest.approx(mean_loss(model, [first], end), abs=1e-5)


def test_the_last_validation_loss_is_that_of_the_last_weights_on_every_validation_sequence(
    train: Train, configure: Callable[..., Any]
) -> None:
    overrides = ("data.val_sequences=10", "trainer.eval_every_steps=3")  # the last batch has two sequences only
    config, finished = configure(*overrides), train(*overrides)
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size)
    batches = list(LanguageDataModule(config.data, corpus=corpus, seed=0, max_steps=8).val_dataloader())
    assert sum(len(batch["targets"]) for batch in batches) == 10
    model, _ = load_model(finished.directory, "last")
    end = corpus.eos_id if config.model.document_mask else None
    assert finished.column("val/loss")[-1] == pytest.approx(mean_loss(model, batches, end), abs=1e-5)


def test_tokens_and_learning_rate_are_those_of_the_step(train: Train, configure: Callable[..., Any]) -> None:
    overrides = ("trainer.accumulate_grad_batches=2", "optim.warmup_frac=0.5")
    finished, optim = train(*overrides), configure(*overrides).optim
    assert [float(row["train/tokens"]) for row in finished.rows] == [int(row["step"]) * 4 * 32 for row in finished.rows]
    assert {bool(row["val/loss"]) for row in finished.rows} == {True, False}  # rows of evaluations too
    assert finished.column("train/lr") == pytest.approx([optim.lr * lr_factor(step, 8, optim) for step in range(8)])
    saved = finished.checkpoint()["lr_schedulers"][0]
    assert saved["last_epoch"] == 8


def test_the_clip_bounds_the_step_and_the_logged_norm_is_from_before_it(train: Train) -> None:
    free, clipped = train("trainer.gradient_clip=0", into="free"), train("trainer.gradient_clip=1e-4", into="clipped")
    assert free.column("train/grad_norm")[0] == clipped.column("train/grad_norm")[0] > 1e-2
    assert free.column("train/loss")[0] == clipped.column("train/loss")[0]
    moments = clipped.checkpoint()["optimizer_states"][0]["state"].values()
    assert sum(float(m["exp_avg"].square().sum()) for m in moments) ** 0.5 <= 1e-4


def test_the_assignments_of_every_step_are_all_counted(train: Train) -> None:
    counts = train("trainer.accumulate_grad_batches=2").routing["tokens_per_expert"]  # [steps, layers, experts]
    assert (counts.sum(-1) == 4 * 32 * 2).all()  # tokens of a step x experts per token
