"""`python -m chronomoe.generate`: the same seed gives the same text, and standard output holds the text alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import Finished, Outcome

from chronomoe import generate
from chronomoe.data.tokenizer import load_tokenizer

Generate = Callable[..., Outcome]


@pytest.fixture(scope="module")
def trained(trained_run: Callable[..., Path]) -> Path:
    return trained_run("trainer.max_steps=20", "trainer.eval_every_steps=10", "optim.lr=1e-2")


@pytest.fixture
def say(trained: Path, outcome_of: Callable[..., Outcome]) -> Generate:
    """say(*arguments): the command, on the trained run, with the prompt "the slow" unless told otherwise."""

    def say(*arguments: str) -> Outcome:
        defaults = [f"run={trained}", "prompt=the slow", "max_new_tokens=20"]
        given = {argument.split("=")[0] for argument in arguments}
        kept = [default for default in defaults if default.split("=")[0] not in given]
        return outcome_of(generate.main, *kept, *arguments)

    return say


def test_standard_output_is_the_prompt_and_its_continuation_alone(say: Generate) -> None:
    outcome = say()
    assert outcome.code == 0
    assert outcome.stdout.startswith("the slow")
    assert len(outcome.stdout) > len("the slow\n")
    assert outcome.stdout.endswith("\n")
    assert outcome.stderr == ""


def test_the_same_seed_gives_the_same_text_and_another_seed_another(say: Generate) -> None:
    assert say("seed=3").stdout == say("seed=3").stdout
    assert len({say(f"seed={seed}", "temperature=2").stdout for seed in range(4)}) > 1


def test_temperature_zero_takes_the_most_likely_token_whatever_the_seed(say: Generate, trained: Path) -> None:
    texts = {say("temperature=0", f"seed={seed}").stdout for seed in range(3)}
    model, _ = generate.load_model(trained, "best")
    tokenizer = load_tokenizer(str(trained / "tokenizer")).tokenizer
    ids = tokenizer.encode("the slow").ids
    prompt = len(ids)
    for _ in range(20):  # without a cache, the whole text again for every token
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits_BSV[0, -1].argmax()))
    assert texts == {"the slow" + tokenizer.decode(ids[prompt:]) + "\n"}


def test_best_and_last_are_the_two_checkpoints(say: Generate, trained: Path) -> None:
    for name in ("best", "last"):
        model, _ = generate.load_model(trained, name)
        saved = Finished(trained).checkpoint(name)["state_dict"]
        assert all(torch.equal(tensor, saved[f"model.{key}"]) for key, tensor in model.state_dict().items())
        assert say(f"checkpoint={name}").code == 0


def test_the_prompt_may_look_like_syntax(say: Generate) -> None:
    for prompt in ("${oc.env:HOME}", "a=b, [c", "déjà 🕰"):
        assert say(f"prompt={prompt}").stdout.startswith(prompt)


WRONG = {
    "missing_run": (["run=nowhere"], "nowhere"),
    "unknown_key": (["promt=x"], "prompt"),
    "no_key": (["hello"], "key=value"),
    "temperature": (["temperature=-1"], "temperature=-1"),
    "word": (["temperature=hot"], "temperature"),
    "top_p": (["top_p=1.5"], "top_p=1.5"),
    "count": (["max_new_tokens=0"], "max_new_tokens=0"),
    "room": (["max_new_tokens=5000"], "max_new_tokens=5000"),
    "empty_prompt": (["prompt="], "prompt"),
    "checkpoint": (["checkpoint=bets"], "best"),
}


@pytest.mark.parametrize(("arguments", "fragment"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_gets_one_line(say: Generate, arguments: list[str], fragment: str) -> None:
    outcome = say(*arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line


def test_a_run_without_a_tokenizer_or_checkpoint_gets_one_line(say: Generate, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((trained / "config.yaml").read_text())
    outcome = say(f"run={tmp_path}")
    assert outcome.code == 2
    assert len(outcome.stderr.splitlines()) == 1


def test_a_prompt_that_was_left_out_is_asked_for(trained: Path, outcome_of: Callable[..., Outcome]) -> None:
    outcome = outcome_of(generate.main, f"run={trained}")
    assert outcome.code == 2
    assert outcome.stderr == "error: prompt must be given: add prompt=… to the command\n"
