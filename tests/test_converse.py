"""`python -m chronomoe.converse`: commands are obeyed, anything else is inserted, standard output holds the text."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_runs import Outcome

from chronomoe import converse
from chronomoe.data.tokenizer import load_tokenizer
from chronomoe.generate import load_model
from chronomoe.session.telemetry import read_telemetry

Talk = Callable[..., Outcome]
PROMPT = "the slow router sends every token. a quick expert holds the clock. no idle lens weighs the field. the loud"


@pytest.fixture(scope="module")
def trained(trained_run: Callable[..., Path]) -> Path:
    steps = ("trainer.max_steps=30", "trainer.eval_every_steps=30", "optim.lr=1e-2")
    return trained_run(*steps, "data.val_fraction=0.5", "model.max_seq_len=256")


@pytest.fixture
def talk(trained: Path, outcome_of: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Talk:
    """talk(typed, *arguments): the command with these lines on standard input."""
    monkeypatch.chdir(tmp_path)

    def talk(typed: str, *arguments: str) -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        quick = (f"model={trained}", f"prompt={PROMPT}", "chunk_size=6", "calibration_tokens=1400", "temperature=0")
        given = {argument.partition("=")[0] for argument in arguments}
        return outcome_of(converse.main, *(word for word in quick if word.partition("=")[0] not in given), *arguments)

    return talk


def test_the_text_is_that_of_the_model_alone_chunk_by_chunk(talk: Talk, trained: Path) -> None:
    outcome = talk("continue\n\nend\n")
    assert outcome.code == 0, outcome.stderr
    model, _ = load_model(trained, "best")
    tokenizer = load_tokenizer(str(trained / "tokenizer")).tokenizer
    ids = tokenizer.encode(PROMPT).ids
    with torch.no_grad():
        for _ in range(18):
            ids.append(int(model(torch.tensor([ids])).last_logits_BV.argmax()))
    assert outcome.stdout == tokenizer.decode(ids) + "\n"
    assert [line[:8] for line in outcome.stderr.splitlines()[-4:]] == ["[chunk 0", "[chunk 1", "[chunk 2", "[end]"]


def test_anything_else_is_inserted_and_paid_for(talk: Talk) -> None:
    outcome = talk(" please go on\nend\n", "telemetry=t.pt")
    assert outcome.code == 0, outcome.stderr
    assert " please go on" in outcome.stdout
    assert "nats]" in outcome.stderr
    first, second = read_telemetry(Path("t.pt")).chunks
    assert (first.inserted, second.inserted > 0, second.work > 0) == (0, True, True)


def test_without_multistep_it_goes_on_until_its_text_is_full(talk: Talk) -> None:
    outcome = talk("multistep off\n")
    assert outcome.code == 0, outcome.stderr
    assert "[mode single_turn" in outcome.stderr
    assert outcome.stderr.count("[chunk ") > 10
    last = outcome.stderr.splitlines()[-2:]
    assert "[the model's longest text is full]" in last or last[-1] in ("[completed]", "[negative_pressure]")


def test_the_end_of_input_is_the_end(talk: Talk) -> None:
    outcome = talk("")
    assert outcome.code == 0
    assert outcome.stderr.count("[chunk ") == 1


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["prompt=the slow"], "the clocks need 32"),
        (["model=nowhere"], "is no directory of a run"),
        (["telemetry=nowhere/t.pt"], "give a file in a folder that exists"),
    ],
)
def test_a_wrong_argument_gets_one_line(talk: Talk, arguments: list[str], fragment: str) -> None:
    outcome = talk("end\n", *arguments)
    assert outcome.code == 2
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert fragment in line
