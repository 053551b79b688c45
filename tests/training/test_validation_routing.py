"""The routing of an evaluation, read at once from all its tokens, against a count of every token done by hand.

Axes: B batch, S sequence, T tokens, E experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_runs import Finished

from chronomoe.data.datamodule import LanguageDataModule
from chronomoe.data.packing import prepare_corpus
from chronomoe.generate import load_model
from chronomoe.model.lm import number_documents

Train = Callable[..., Finished]
KEYS = {
    "val_max_vio": "max_vio",
    "val_load_entropy": "load_entropy",
    "val_token_entropy": "token_entropy",
    "expert_information": "expert_information",
    "val_dead_expert_frac": "dead_expert_frac",
}
UNEVEN = ("data.val_sequences=10", "trainer.eval_every_steps=4")  # the last batch has two sequences only


def entropy(shares: list[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def by_hand(run: Finished, config: Any) -> dict[str, float]:
    """Mean over layers, from counts and probabilities of each token in turn, in float64."""
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size)
    batches = list(LanguageDataModule(config.data, corpus=corpus, seed=0, max_steps=8).val_dataloader())
    ids_BS = torch.cat([batch["input_ids"] for batch in batches])
    model, _ = load_model(run.directory, "last")
    with torch.no_grad():
        documents_BS = number_documents(ids_BS, corpus.eos_id) if config.model.document_mask else None
        routings = model.eval()(ids_BS, document_BS=documents_BS).routings
    layers = []
    for routing in routings:
        rows = [row.double().softmax(dim=0).tolist() for row in routing.logits_TE]
        if config.router.gate == "sigmoid":
            scores = [row.double().sigmoid() for row in routing.logits_TE]
            rows = [(score / score.sum()).tolist() for score in scores]
        experts, tokens = len(rows[0]), len(rows)
        counts = [0] * experts
        for chosen in routing.topk_expert_ids_TK.tolist():
            for expert in chosen:
                counts[expert] += 1
        mean = [sum(column) / tokens for column in zip(*rows, strict=True)]
        mean_entropy = sum(entropy(row) for row in rows) / tokens
        layers.append(
            {
                "max_vio": max(counts) / (sum(counts) / experts) - 1,
                "load_entropy": entropy([count / sum(counts) for count in counts]) / math.log(experts),
                "token_entropy": mean_entropy / math.log(experts),
                "expert_information": entropy(mean) - mean_entropy,
                "dead_expert_frac": counts.count(0) / experts,
                "dropped_frac": 0.0,
            }
        )
    return {name: sum(layer[name] for layer in layers) / len(layers) for name in layers[0]}


@pytest.mark.parametrize("gate", ["topk_softmax", "sigmoid"])
def test_routing_metrics_of_an_evaluation_are_those_of_all_its_tokens_counted_by_hand(
    train: Train, configure: Callable[..., Any], gate: str
) -> None:
    overrides = (*UNEVEN, f"router.gate={gate}", "chrono.start_step=3")
    run, config = train(*overrides), configure(*overrides)
    for name, expected in by_hand(run, config).items():
        assert run.column(f"val/{name}")[-1] == pytest.approx(expected, abs=1e-5), name
    assert len(run.column("val/max_vio")) == 2
    assert min(run.column("val/expert_information")) >= 0.0


def test_the_summary_holds_the_last_evaluation(train: Train) -> None:
    run = train(*UNEVEN)
    for key, name in KEYS.items():
        assert run.summary[key] == pytest.approx(run.column(f"val/{name}")[-1], rel=1e-5), key


def test_a_dense_models_summary_has_the_keys_and_no_values(train: Train) -> None:
    summary = train("model.dense=true", "chrono=off").summary
    assert {key: summary[key] for key in KEYS} == dict.fromkeys(KEYS)


def test_too_few_tokens_to_call_an_expert_dead_leave_a_summary_other_programs_can_read(train: Train) -> None:
    run = train("model.num_experts=64", "trainer.max_steps=2", "data.val_sequences=1", "chrono=off")
    text = (run.directory / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert summary["val_dead_expert_frac"] is None


@pytest.mark.parametrize("causal", [True, False])
def test_expert_choice_counts_what_experts_took_and_drops_nothing(train: Train, causal: bool) -> None:
    run = train("router=expert_choice", f"router.causal={causal}", "chrono=off", *UNEVEN)
    assert run.column("val/dropped_frac")[-1] == 0.0
    if not causal:
        assert run.column("val/max_vio")[-1] == 0.0  # experts take equally many tokens
