"""`python -m chronomoe.generate save=… resume=…`: a text written in several sittings is the one written in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import Outcome

from chronomoe import generate
from chronomoe.data.tokenizer import load_tokenizer
from chronomoe.saved_generation import load_session
from chronomoe.settings import RunFailed

Say = Callable[..., Outcome]
KINDS: dict[str, list[str]] = {
    "mixtral": [],
    "hybrid": [
        "model.schedule=RRT", "model.num_layers=3", "model.dim=64", "model.activation=gelu", "model.norm=layer",
        "model.num_kv_heads=2", "model.tie_embeddings=true",
    ],
    "window": ["model.schedule=RT", "model.dim=64", "model.attention_window=9", "model.norm=layer"],
}  # fmt: skip
DRAWING = {"greedy": ["temperature=0"], "sampled": ["temperature=1.3", "top_p=0.9", "seed=4"]}
by_drawing = pytest.mark.parametrize("drawing", DRAWING.values(), ids=DRAWING.keys())


@pytest.fixture(scope="module")
def runs(trained_run: Callable[..., Path]) -> dict[str, Path]:
    """Runs of a few steps."""
    steps = ("trainer.max_steps=6", "trainer.eval_every_steps=6", "optim.lr=1e-2", "model.max_seq_len=128")
    return {name: trained_run(*steps, *overrides) for name, overrides in KINDS.items()}


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, outcome_of: Callable[..., Outcome], tmp_path: Path) -> Say:
    """say(run, *arguments): the command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda run, *arguments: outcome_of(generate.main, f"run={run}", *arguments)


def said(outcome: Outcome) -> str:
    """The text, without the line's end."""
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.endswith("\n")
    return outcome.stdout[:-1]


def ending_with(eos_id: int) -> Callable[[str], Any]:
    """Instead of `load_tokenizer`: this token ends a document."""
    return lambda path: SimpleNamespace(tokenizer=load_tokenizer(path).tokenizer, eos_id=eos_id)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token ends a document, so that texts have the length asked for."""
    monkeypatch.setattr(generate, "load_tokenizer", ending_with(-1))


@by_drawing
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("endless")
def test_a_text_in_three_sittings_is_the_text_in_one(
    runs: dict[str, Path], say: Say, kind: str, drawing: list[str]
) -> None:
    run = runs[kind]
    whole = said(say(run, "prompt=the slow", "max_new_tokens=40", *drawing, "save=whole"))
    pieces = [
        said(say(run, "prompt=the slow", "max_new_tokens=11", *drawing, "save=s")),
        said(say(run, "resume=s", "max_new_tokens=1", "save=s")),
        said(say(run, "resume=s", "max_new_tokens=28", "save=s")),
    ]
    assert "".join(pieces) == whole
    one, other = (torch.load(name, weights_only=True) for name in ("whole", "s"))
    assert one["unread"] == other["unread"]
    assert one["state"]["position"] == other["state"]["position"]
    assert torch.equal(one["generator"], other["generator"])
    for mine, theirs in zip(one["state"]["layers"], other["state"]["layers"], strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("endless")
def test_tokens_are_those_of_the_whole_text_read_at_once(runs: dict[str, Path], say: Say, kind: str) -> None:
    run = runs[kind]
    said(say(run, "prompt=the slow", "max_new_tokens=5", "temperature=0", "save=s"))
    said(say(run, "resume=s", "prompt= every loud", "max_new_tokens=7", "save=s"))
    model, _ = generate.load_model(run, "best")
    tokenizer = load_tokenizer(str(run / "tokenizer")).tokenizer
    ids = tokenizer.encode("the slow").ids
    for new, further in ((5, tokenizer.encode(" every loud").ids), (7, [])):
        for _ in range(new):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits_BSV[0, -1].argmax()))
        ids += further
    session = load_session(Path("s"), model)
    assert session.unread == ids[-1:]
    assert session.state.position == len(ids) - 1


@pytest.mark.usefixtures("endless")
def test_a_further_prompt_stands_in_the_text(runs: dict[str, Path], say: Say) -> None:
    said(say(runs["hybrid"], "prompt=the slow", "max_new_tokens=5", "temperature=0", "save=s"))
    assert said(say(runs["hybrid"], "resume=s", "prompt= every", "max_new_tokens=3")).startswith(" every")
    assert not said(say(runs["hybrid"], "resume=s", "max_new_tokens=3")).startswith(" every")


@pytest.mark.usefixtures("endless")
def test_a_session_is_left_as_it_is_and_keeps_its_sampling_unless_told_otherwise(
    runs: dict[str, Path], say: Say
) -> None:
    run = runs["hybrid"]
    said(say(run, "prompt=the slow", "max_new_tokens=5", "temperature=2", "seed=4", "save=s"))
    before = Path("s").read_bytes()
    texts = [said(say(run, "resume=s", "max_new_tokens=20", *own)) for own in ([], [], ["seed=5"], ["temperature=0"])]
    assert Path("s").read_bytes() == before
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@pytest.mark.usefixtures("endless")
def test_a_character_cut_by_the_end_of_a_sitting_is_written_once_and_whole(
    runs: dict[str, Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["mixtral"]
    clock = load_tokenizer(str(run / "tokenizer")).tokenizer.encode("🕰é").ids
    assert len(clock) >= 4

    def drawn(*_: Any, max_new_tokens: int, state: Any, **__: Any) -> Any:
        for _ in range(max_new_tokens):
            state.position += 1
            yield torch.tensor([clock[(state.position - 1) % len(clock)]])

    monkeypatch.setattr(generate, "generate", drawn)
    monkeypatch.setattr("chronomoe.model.state.KeyValueCache.shapes", lambda self, batch, position: {
        name: (batch, t.shape[1], 0, t.shape[3]) for name, t in self.tensors().items()
    })  # fmt: skip
    texts = [said(say(run, "prompt=x", "max_new_tokens=1", "save=s"))]
    texts += [said(say(run, "resume=s", "max_new_tokens=1", "save=s")) for _ in range(2 * len(clock) - 1)]
    assert "".join(texts) == "x🕰é🕰é"


def test_a_session_ends_with_its_document_and_the_next_begins_behind_it(
    runs: dict[str, Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["hybrid"]
    monkeypatch.setattr(generate, "load_tokenizer", ending_with(-1))
    said(say(run, "prompt=the slow", "max_new_tokens=4", "temperature=0", "save=s"))
    last = torch.load("s", weights_only=True)["unread"][0]
    monkeypatch.setattr(generate, "load_tokenizer", ending_with(last))
    said(say(run, "prompt=the slow", "max_new_tokens=40", "temperature=0", "save=t"))
    saved = torch.load("t", weights_only=True)
    assert saved["unread"] == [last]
    assert saved["state"]["position"] < 40


def test_a_save_that_fails_leaves_the_session_before_untouched(
    runs: dict[str, Path], say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(say(runs["hybrid"], "prompt=the slow", "max_new_tokens=2", "save=s"))
    before = Path("s").read_bytes()

    def refuse(saved: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chronomoe.tensor_file.torch.save", refuse)
    outcome = say(runs["hybrid"], "resume=s", "max_new_tokens=2", "save=s")
    assert outcome.code == 1
    assert outcome.stderr == "error: could not save s: No space left on device; the previous one is untouched\n"
    assert Path("s").read_bytes() == before
    assert [path.name for path in Path.cwd().iterdir()] == ["s"]
    assert issubclass(RunFailed, RuntimeError)


def broken(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        saved = torch.load("good", weights_only=True)
        change(saved)
        torch.save(saved, path)

    return write


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "text": (lambda path: path.write_text("the slow"), "truncated, or no session"),
    "truncated": (lambda path: path.write_bytes(Path("good").read_bytes()[:4000]), "truncated"),
    "code": (lambda path: torch.save({"weights": Path.cwd}, path), "not executed"),
    "a checkpoint": (lambda path: torch.save({"state_dict": {}, "global_step": 1}, path), "is no session"),
    "a list": (lambda path: torch.save([1], path), "is no session"),
    "no state": (broken(lambda saved: saved.pop("state")), "is no session"),
    "no position": (broken(lambda saved: saved["state"].pop("position")), "no state of a model"),
    "a block less": (broken(lambda saved: saved["state"]["layers"].pop()), "2 blocks and the model has 3"),
    "nothing unread": (broken(lambda saved: saved["unread"].clear()), "unread is empty"),
    "ids that are none": (broken(lambda saved: saved["unread"].append(10**6)), "unread holds no token ids"),
    "no generator": (broken(lambda saved: saved.update(generator=torch.zeros(3, dtype=torch.uint8))), "is broken"),
    "a generator of words": (broken(lambda saved: saved.update(generator="seed")), "is broken"),
    "heat": (broken(lambda saved: saved.update(temperature=-1.0)), "temperature=-1.0"),
    "words for heat": (broken(lambda saved: saved.update(temperature="hot")), "is broken"),
}


@pytest.mark.parametrize(("write", "fragment"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_session_gets_one_line(
    runs: dict[str, Path], say: Say, write: Callable[[Path], object], fragment: str
) -> None:
    said(say(runs["hybrid"], "prompt=the slow", "max_new_tokens=2", "save=good"))
    write(Path("s"))
    outcome = say(runs["hybrid"], "resume=s")
    assert outcome.code == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: resume=s")
    assert fragment in line


def test_the_session_of_other_weights_is_refused_whatever_their_shapes(
    runs: dict[str, Path], say: Say, tmp_path: Path
) -> None:
    said(say(runs["hybrid"], "prompt=the slow", "max_new_tokens=2", "save=s"))
    model, _ = generate.load_model(runs["hybrid"], "best")
    with torch.no_grad():
        model.blocks[1].ffn.experts.down_EDF[0, 0, 0] += 0.5
    with pytest.raises(ValueError, match="other weights"):
        load_session(tmp_path / "s", model)
    outcome = say(runs["mixtral"], "resume=s")
    assert outcome.code == 2
    assert "other weights" in outcome.stderr


WRONG = {
    "nothing to continue": ([], "prompt must be given"),
    "an empty prompt": (["prompt="], "prompt is empty"),
    "a folder that is not there": (["prompt=x", "save=nowhere/s"], "save=nowhere/s"),
    "a folder": (["prompt=x", "save=."], "save=."),
    "no room": (["resume=s", "max_new_tokens=125"], "use max_new_tokens=12"),
}


@pytest.mark.parametrize(("arguments", "fragment"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_argument_gets_one_line_before_anything_is_written(
    runs: dict[str, Path], say: Say, arguments: list[str], fragment: str
) -> None:
    said(say(runs["hybrid"], "prompt=the slow", "max_new_tokens=4", "save=s"))
    outcome = say(runs["hybrid"], *arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert len(outcome.stderr.splitlines()) == 1
    assert fragment in outcome.stderr


@pytest.mark.usefixtures("endless")
def test_behind_a_window_a_text_has_no_end_and_its_session_one_size(runs: dict[str, Path], say: Say) -> None:
    sizes = []
    said(say(runs["window"], "prompt=the slow", "max_new_tokens=100", "save=s"))
    for _ in range(2):
        said(say(runs["window"], "resume=s", "max_new_tokens=100", "save=s"))
        sizes.append(Path("s").stat().st_size)
    assert abs(sizes[0] - sizes[1]) < 256  # the digits of numbers, and what a character may lack
    assert torch.load("s", weights_only=True)["state"]["position"] > 300
