"""`python -m chronomoe.perplexity`: what it prints and writes, and one line for every bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hub_models import tiny_hub_model
from training_runs import Outcome

from chronomoe import perplexity
from chronomoe.data.tokenizer import save_tokenizer, train_tokenizer

pytest.importorskip("transformers")
Ask = Callable[..., Outcome]
TEXT = "".join(f"the {n % 7} of {n % 3} is a {n % 11}, said the {n % 5}\n" for n in range(400))


@pytest.fixture
def ask(outcome_of: Callable[..., Outcome]) -> Ask:
    """ask(*arguments): the command."""
    return partial(outcome_of, perplexity.main)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with a tokenizer, and a text beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    language = train_tokenizer([TEXT], 300)
    save_tokenizer(language, folder)
    tiny_hub_model("mixtral", vocab_size=320).save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def test_both_readings_and_their_difference_are_printed_and_written(ask: Ask, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "perplexity.json"
    common = f"model={checkpoint}", f"text={checkpoint / 'text.txt'}", "window=32", "stride=16"
    done = ask(*common, "chrono=sign", "chrono.rate=0.02", f"out={out}")
    assert done.code == 0, done.stderr
    found = json.loads(out.read_text())
    for name in ("neutral", "controlled"):
        assert f"{found[name]['perplexity']:.4f}" in done.stdout
    difference = found["controlled"]["loss"] - found["neutral"]["loss"]
    assert found["difference"]["loss_difference"] == pytest.approx(difference, abs=1e-9)
    assert found["difference"]["ci_low"] <= difference <= found["difference"]["ci_high"]
    assert difference != 0.0
    assert found["controlled"]["max_vio"] < found["neutral"]["max_vio"]
    assert found["ticks"] == found["tokens"] // 2 // 33 or found["ticks"] == (found["tokens"] + 1) // 2 // 33
    assert "Mixtral: 3 layers with routers, 4 experts, top 2" in done.stderr


def test_no_law_makes_no_difference(ask: Ask, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "perplexity.json"
    done = ask(
        f"model={checkpoint}", f"text={checkpoint / 'text.txt'}", "window=32", "stride=32", "chrono=off", f"out={out}"
    )
    assert done.code == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["neutral"] == found["controlled"]
    assert found["difference"]["loss_difference"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model={c}"], "text must be given"),
        (["model={c}", "text={c}/nothing.txt"], "cannot be read as UTF-8 text"),
        (["model={c}", "text={c}/model.safetensors"], "cannot be read as UTF-8 text"),
        (["model={c}", "text={c}/text.txt", "window=100000"], "needs 200002: use a longer text"),
        (["model={c}", "text={c}/text.txt", "window=100", "stride=9"], "the model reads at most 64"),
        (["model={c}", "text={c}/text.txt", "window=16", "stride=17"], "stride=17 skips tokens"),
        (["model={c}", "text={c}/text.txt", "window=16", "stride=8", "chrono=sgin"], "did you mean chrono=sign"),
        (
            ["model={c}", "text={c}/text.txt", "window=16", "stride=8", "out=/no/such/place.json"],
            "a folder that exists",
        ),
        (["model={c}/nowhere", "text={c}/text.txt"], "model={c}/nowhere is no folder"),
        (["model={c}", "text={c}/text.txt", "window=16", "stride=8", "quantisation=nf4"], "experts are fused"),
        (["model={c}", "text={c}/text.txt", "txet=a"], "txet"),
    ],
)
def test_a_bad_input_gets_one_line(
    arguments: list[str], said: str, ask: Ask, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronomoe.data.hub._hub_answers", lambda: False)
    done = ask(*(argument.format(c=checkpoint) for argument in arguments))
    assert done.code == 2
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said.format(c=checkpoint) in errors[0]
