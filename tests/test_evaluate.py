"""`python -m chronomoe.evaluate`: what it writes agrees with the run, with the metrics, and with an untrained twin."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from training_runs import Finished, Outcome

from chronomoe import evaluate
from chronomoe.data.packing import prepare_corpus
from chronomoe.model.lm import number_documents
from chronomoe.settings import InputError
from chronomoe.study.routing_readings import AVERAGED

Evaluate = Callable[..., Outcome]


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty files of prose and thirty of code, which share few words."""
    folder = tmp_path_factory.mktemp("two_domains")
    words = {
        "md": ["the", "slow", "quiet", "router", "sends", "every", "heavy", "token"],
        "py": ["def", "return", "for", "in", "if", "else", "x", "y", "(", ")", ":", "="],
    }
    for name, known in words.items():
        rng = np.random.default_rng(len(known))
        for number in range(30):
            text = "\n".join(" ".join(rng.choice(known, 10)) for _ in range(20))
            (folder / f"{number:02}.{name}").write_text(text + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(trained_run: Callable[..., Path], two_domains: Path) -> Finished:
    data = [f"data.path={two_domains}", "data.val_fraction=0.5", "data.val_sequences=64"]
    steps = ["trainer.max_steps=20", "trainer.eval_every_steps=10", "trainer.keep_every_steps=10"]
    return Finished(trained_run(*data, *steps, "optim.lr=1e-2"))


@pytest.fixture(scope="module")
def evaluation(trained: Finished) -> dict[str, Any]:
    settings = evaluate.EvaluateSettings(
        run=str(trained.directory), checkpoint="last", permutations=199, resamples=1000
    )
    return evaluate.evaluate(trained.directory, settings)


@pytest.fixture
def command(outcome_of: Callable[..., Outcome]) -> Evaluate:
    return partial(outcome_of, evaluate.main)


def test_the_command_writes_json_and_figure_and_prints_a_table(command: Evaluate, trained: Finished) -> None:
    outcome = command(f"run={trained.directory}", "permutations=199", "resamples=1000")
    assert outcome.code == 0, outcome.stderr
    saved = json.loads((trained.directory / "evaluation.json").read_text())
    assert saved["checkpoint"] == "best"
    assert saved["tokens"] == 64 * 32
    assert len(saved["domains"]) == 2
    assert f"{saved['trained']['loss']:.4f}" in outcome.stdout
    assert f"{saved['trained']['layers'][1]['domain_debiased']:.4f}" in outcome.stdout
    assert matplotlib.image.imread(trained.directory / "figures" / "specialisation.png").shape[1] == 1140


def test_the_last_checkpoint_reads_what_the_run_itself_saw_last(evaluation: dict[str, Any], trained: Finished) -> None:
    read = evaluation["trained"]
    assert read["loss"] == pytest.approx(trained.summary["val_loss"], rel=1e-5)
    assert read["perplexity"] == pytest.approx(math.exp(read["loss"]))
    for key, name in (("val_max_vio", "max_vio"), ("expert_information", "expert_information")):
        assert read["mean"][name] == pytest.approx(trained.summary[key], rel=1e-4)


def test_the_untrained_twin_is_the_model_before_its_first_step(
    evaluation: dict[str, Any], configure: Callable[..., Any], trained: Finished
) -> None:
    from chronomoe.config import load_config

    config = load_config(trained.directory / "config.yaml")
    first, second = (evaluate.untrained_twin(config).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert evaluation["untrained"]["loss"] == pytest.approx(math.log(320), rel=0.05)
    assert evaluation["untrained"]["loss"] > evaluation["trained"]["loss"]
    for name in AVERAGED:
        mine, floor = (evaluation[model]["mean"][name] for model in ("trained", "untrained"))
        assert evaluation["trained_minus_untrained"][name] == pytest.approx(mine - floor)


def test_the_twin_has_the_weights_that_training_started_from(train: Callable[..., Finished]) -> None:
    from chronomoe.config import load_config

    barely = train("trainer.max_steps=1", "optim.lr=1e-9")
    twin = evaluate.untrained_twin(load_config(barely.directory / "config.yaml")).state_dict()
    saved = barely.checkpoint()["state_dict"]
    for name in ("embedding.weight", "blocks.1.ffn.router.gate.weight", "head.weight"):
        torch.testing.assert_close(twin[name], saved[f"model.{name}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [["router=expert_choice", "chrono=off"], ["chrono=bip", "chrono.evaluation=batch"], ["router=switch"]],
    ids=["expert_choice", "solved_in_evaluation", "switch"],
)
def test_every_way_of_routing_is_evaluated_as_the_run_itself_did(
    train: Callable[..., Finished], overrides: list[str]
) -> None:
    run = train(*overrides)
    settings = evaluate.EvaluateSettings(run=str(run.directory), checkpoint="last", permutations=199, resamples=1000)
    read = evaluate.evaluate(run.directory, settings)["trained"]
    assert read["loss"] == pytest.approx(run.summary["val_loss"], rel=1e-5)
    assert read["mean"]["load_entropy"] == pytest.approx(run.summary["val_load_entropy"], rel=1e-4)


def test_the_lexical_floor_is_reported_and_not_assumed_zero(evaluation: dict[str, Any]) -> None:
    for layer in evaluation["untrained"]["layers"]:
        assert layer["domain_debiased"] > 0
        assert layer["domain_p_value"] == pytest.approx(1 / 200)
        assert layer["vocabulary_corrected"] > 0


def test_oracle_and_random_routing_bound_what_a_router_can_read(evaluation: dict[str, Any]) -> None:
    oracle, random = (evaluation["references"][name] for name in ("oracle", "random"))
    assert oracle["domain_debiased"] == pytest.approx(1.0)
    assert random["domain_debiased"] == pytest.approx(0.0, abs=0.01)
    assert random["domain_p_value"] > 0.01
    for layer in evaluation["trained"]["layers"]:
        assert layer["domain_debiased"] <= oracle["domain_debiased"] + 1e-9


def test_tokens_are_labelled_with_the_document_they_were_read_from(trained: Finished) -> None:
    from chronomoe.config import load_config

    config = load_config(trained.directory / "config.yaml")
    batches, tokens, end_of_document = evaluate.read_validation(config)
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True)
    tokenizer = corpus.tokenizer()
    assert len(tokens.token_ids_T) == sum(batch["input_ids"].numel() for batch in batches)
    code = corpus.domains.index("code") if "code" in corpus.domains else int(tokens.domain_T.max())
    for domain in range(2):
        ids = tokens.token_ids_T[tokens.domain_T == domain].tolist()
        text = tokenizer.decode([token for token in ids if token != end_of_document])
        assert ("def" in text) == (domain == code)
        assert ("router" in text) != (domain == code)
    ends_T = tokens.token_ids_T == end_of_document
    changes_T = tokens.document_T.diff() > 0
    inside_block_T = torch.arange(1, len(tokens.document_T)) % config.data.seq_len > 0
    assert torch.equal(ends_T[:-1] & inside_block_T, changes_T & inside_block_T)


def test_layers_hold_every_metric_and_the_mean_is_theirs(evaluation: dict[str, Any]) -> None:
    layers = evaluation["trained"]["layers"]
    assert len(layers) == 2
    for name in AVERAGED:
        assert evaluation["trained"]["mean"][name] == pytest.approx(sum(layer[name] for layer in layers) / 2)
    for layer in layers:
        assert np.array(layer["domain_specialisation"]).shape == (2, 4)
        assert layer["domain_low"] < layer["domain_high"]
        assert 0 <= layer["lift_lowest"] <= 1 <= layer["lift_highest"]


def test_the_same_seed_evaluates_to_the_same_bits(evaluation: dict[str, Any], trained: Finished) -> None:
    settings = evaluate.EvaluateSettings(
        run=str(trained.directory), checkpoint="last", permutations=199, resamples=1000
    )
    assert evaluate.evaluate(trained.directory, settings) == evaluation


def saturation(trained: Finished, checkpoint: str, anchor: str) -> dict[str, Any]:
    settings = evaluate.EvaluateSettings(
        run=str(trained.directory), checkpoint=checkpoint, anchor=anchor, permutations=199, resamples=1000
    )
    return evaluate.evaluate(trained.directory, settings)["saturation"]


def clean_sets(trained: Finished, checkpoint: str) -> list[list[set[int]]]:
    """[layer][token]: the two experts with the largest clean logits, over the validation tokens."""
    model, config = evaluate.load_model(trained.directory, checkpoint)
    batches, _, end_of_document = evaluate.read_validation(config)
    layers: list[list[set[int]]] = [[], []]
    for batch in batches:
        document_BS = number_documents(batch["input_ids"], end_of_document) if config.model.document_mask else None
        with torch.no_grad():
            routings = model(batch["input_ids"], document_BS=document_BS).routings
        for layer, routing in zip(layers, routings, strict=True):
            layer += [set(row[:2]) for row in routing.logits_TE.argsort(dim=-1, descending=True).tolist()]
    return layers


def test_saturation_equals_sets_in_plain_python(trained: Finished) -> None:
    found = saturation(trained, "step_00000010", "last")
    now, anchor = (clean_sets(trained, name) for name in ("step_00000010", "last"))
    for layer, read in enumerate(found["layers"]):
        pairs = list(zip(now[layer], anchor[layer], strict=True))
        agreement = sum(len(a & b) for a, b in pairs) / len(pairs) / 2
        rates = [[sum(e in chosen for chosen in of) / len(of) for e in range(4)] for of in (now[layer], anchor[layer])]
        chance = sum(a * b for a, b in zip(*rates, strict=True)) / 2
        assert read == pytest.approx(
            {"agreement": agreement, "chance": chance, "corrected": (agreement - chance) / (1 - chance)}
        )
        assert 0 < chance < agreement < 1
    for name, mean in found["mean"].items():
        assert mean == pytest.approx(sum(layer[name] for layer in found["layers"]) / 2)


def test_a_checkpoint_is_saturated_against_itself(trained: Finished) -> None:
    for layer in saturation(trained, "last", "step_00000020")["layers"]:
        assert (layer["agreement"], layer["corrected"]) == (1.0, pytest.approx(1.0))
        assert layer["chance"] < 1.0


def test_saturation_is_printed_and_saved_with_its_anchor(
    command: Evaluate, trained: Finished, evaluation: dict[str, Any]
) -> None:
    assert (evaluation["anchor"], evaluation["saturation"]) == (None, None)
    draws = ("permutations=199", "resamples=1000")
    outcome = command(f"run={trained.directory}", "checkpoint=step_00000010", "anchor=last", *draws)
    assert outcome.code == 0, outcome.stderr
    saved = json.loads((trained.directory / "evaluation.json").read_text())
    assert (saved["checkpoint"], saved["anchor"]) == ("step_00000010", "last")
    assert "router saturation against last" in outcome.stdout
    for reading in saved["saturation"]["layers"]:
        assert f"{reading['corrected']:.4f}" in outcome.stdout


@pytest.mark.parametrize(
    "overrides", [["model.dense=true", "chrono=off"], ["router=expert_choice", "chrono=off"]], ids=["dense", "expert"]
)
def test_an_anchor_is_refused_where_tokens_choose_no_experts(
    train: Callable[..., Finished], overrides: list[str]
) -> None:
    with pytest.raises(InputError, match="anchor=last"):
        saturation(train(*overrides, "trainer.max_steps=1"), "last", "last")


def test_one_domain_reads_null_and_a_dense_model_has_a_loss_alone(
    train: Callable[..., Finished], command: Evaluate
) -> None:
    draws = ("permutations=199", "resamples=1000")
    alone = train("trainer.max_steps=2", into="alone").directory
    assert command(f"run={alone}", *draws).code == 0
    saved = json.loads((alone / "evaluation.json").read_text())
    assert saved["trained"]["mean"]["domain_debiased"] is None
    assert saved["trained_minus_untrained"]["domain_debiased"] is None
    assert saved["trained"]["mean"]["vocabulary_corrected"] is not None
    assert not (alone / "figures" / "specialisation.png").exists()
    dense = train("model.dense=true", "chrono=off", "trainer.max_steps=2", into="dense").directory
    outcome = command(f"run={dense}", *draws)
    assert outcome.code == 0, outcome.stderr
    assert set(json.loads((dense / "evaluation.json").read_text())["trained"]) == {"loss", "perplexity"}


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(["run=nowhere"], "nowhere"), (["permutations=10"], "permutations=10"), (["resamples=10"], "resamples=10"),
     (["permutation=200"], "permutations"),
     (["checkpoint=bets"], "checkpoint=bets"), (["checkpoint=step_00000007"], "best, last, step_00000010"),
     (["anchor=step_00000007"], "anchor=step_00000007"), (["checkpoint=../last"], "best, last")],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_gets_one_line(
    command: Evaluate, trained: Finished, arguments: list[str], fragment: str
) -> None:
    given = arguments if arguments[0].startswith("run=") else [f"run={trained.directory}", *arguments]
    outcome = command(*given)
    assert outcome.code == 2
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line
