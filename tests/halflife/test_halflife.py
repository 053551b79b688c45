"""`python -m chronomoe.halflife`: what it writes agrees with what was recorded, its nulls show nothing, and it goes on
where it was left."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from opened_report import DESKTOP, PHONE, Opened, launched
from training_runs import Outcome

from chronomoe import convert
from chronomoe.config import load_config
from chronomoe.data.packing import prepare_corpus
from chronomoe.data.tokenizer import load_tokenizer
from chronomoe.generate import load_model
from chronomoe.halflife import __main__ as halflife
from chronomoe.halflife.arms import neutral
from chronomoe.halflife.pressure import INPUTS, pressure, terms, within_texts
from chronomoe.halflife.recording import Recording
from chronomoe.halflife.responses import responses, sustaining_dose
from chronomoe.session.pressures import mid
from chronomoe.session.telemetry import read_telemetry, replay

Ask = Callable[..., Outcome]
QUICK = (
    "num_prompts=3", "seeds=2", "chunks=12", "chunk_size=6", "calibration_tokens=1400", "prompt_tokens=40",
    "prompts=validation", "constraints=none",
)  # fmt: skip
LONG = ("data.val_fraction=0.5", "model.max_seq_len=256")
MODELS = {
    "mixtral": ["router=mixtral"],
    "deepseek": ["router=deepseek", "router.top_k=2", "model.num_shared_experts=1"],
}


@pytest.fixture(scope="module")
def runs(trained_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trained models, each in a folder of its own name."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name, overrides in MODELS.items():
        directory = trained_run(
            "trainer.max_steps=30", "trainer.eval_every_steps=30", "optim.lr=1e-2", *LONG, *overrides
        )
        found[name] = directory.rename(folder / name)
    return found


@pytest.fixture
def ask(outcome_of: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """ask(*arguments): the command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: outcome_of(halflife.main, *arguments)


@pytest.fixture(scope="module")
def measured(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, every null and interruptions, once for all tests that only look."""
    import sys

    output = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patched:
        models = f"model=[{','.join(map(str, runs.values()))}]"
        more = ("nulls=true", "perturb=neutral,random", "doses=2,4", "perturb_at=4", "response_chunks=3")
        patched.setattr(sys, "argv", ["halflife", models, *QUICK, *more, f"output={output}"])
        from chronomoe.entry import guarded

        guarded(halflife.main)
    return output


@pytest.fixture(scope="module")
def found(measured: Path) -> dict[str, Any]:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return dict(json.loads((measured / "halflife.json").read_text(), parse_constant=refuse))


def test_every_text_of_every_arm_is_there(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        texts = {arm: facts["texts"] for arm, facts in model["arms"].items()}
        assert texts == {"real": 6, "controller_off": 6, "untrained": 6, "human": 3}
        assert len(model["series"]) == sum(texts.values())


def test_pressures_are_those_of_the_recorded_tokens(measured: Path, found: dict[str, Any]) -> None:
    for name, model in found["models"].items():
        for row in model["series"]:
            path = measured / name / row["arm"] / f"{row['prompt']}-{row['seed']}.pt"
            again = replay(read_telemetry(path))
            assert np.allclose([one.P_mid for one in again], row["chunks"]["P_mid"], rtol=0, atol=1e-12)


def test_what_is_said_of_decay_is_of_those_series(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        slopes = []
        for row in model["series"]:
            if row["arm"] != "real":
                continue
            flags = row["chunks"]["degenerate"]
            p_K = row["chunks"]["P_mid"][: flags.index(True) if True in flags else None]
            if len(p_K) >= 10:
                slopes.append(np.polyfit(np.arange(len(p_K)), p_K, 1)[0])
        said = model["nulls"]["shuffled"]
        assert (said is None) == (not slopes)
        if said is not None:
            assert math.isclose(said["observed"], np.mean(slopes), rel_tol=1e-6, abs_tol=1e-12)


def test_shares_of_the_variance_add_up(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        assert math.isclose(sum(model["variance_shares"].values()), 1.0, abs_tol=1e-9)


def test_inputs_that_stand_still_give_a_pressure_that_does(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        said = model["nulls"]["constant"]
        assert said.startswith("stable, variance 0; frozen inputs: m, q, d_meso, dR") or "degenerate" in said


def test_constraints_that_were_left_out_are_said_to_be_absent(found: dict[str, Any]) -> None:
    assert all(model["signals_absent"] == ["v"] for model in found["models"].values())
    assert all("v" not in model["signals"] for model in found["models"].values())


def test_every_interruption_is_paid_for(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        cells = {(cell["arm"], cell["dose"]): cell for cell in model["perturbation"]["cells"]}
        assert cells.keys() == {("neutral", 2), ("neutral", 4), ("random", 2), ("random", 4)}
        assert all(cell["work"] > 0 and set(cell["response"]) == {"1", "3"} for cell in cells.values())
        assert cells["random", 4]["work"] > cells["random", 2]["work"]


def test_human_text_is_read_as_it_was_written(measured: Path, runs: dict[str, Path]) -> None:
    """The held text behind what calibrates, word by word."""
    config = load_config(runs["mixtral"] / "config.yaml")
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True)
    held = np.asarray(corpus.val_tokens)[1400:].tolist()
    telemetry = read_telemetry(measured / "mixtral" / "human" / "passage_00-42.pt")
    assert telemetry.tokens["token"].tolist() == held[1 : 40 + 12 * 6]


def test_without_its_field_a_model_goes_elsewhere_and_gets_it_back(runs: dict[str, Path]) -> None:
    model, _ = load_model(runs["mixtral"], "best")
    before = model.expert_bias_LE.clone()
    assert before.any()
    with neutral(model):
        assert not model.expert_bias_LE.any()
    assert torch.equal(model.expert_bias_LE, before)


def test_what_is_there_is_read_and_what_is_missing_is_recorded_bit_for_bit(
    ask: Ask, runs: dict[str, Path], tmp_path: Path
) -> None:
    arguments = (f"model={runs['mixtral']}", *QUICK, "output=here")
    assert ask(*arguments).code == 0
    said = (tmp_path / "here" / "halflife.json").read_text()
    texts = sorted((tmp_path / "here" / "mixtral" / "real").glob("*.pt"))
    assert len(texts) == 6
    kept, lost = texts[0], texts[3]
    when = kept.stat().st_mtime_ns
    lost.unlink()
    assert ask(*arguments).code == 0
    assert kept.stat().st_mtime_ns == when
    assert (tmp_path / "here" / "halflife.json").read_text() == said


def test_the_page_shows_conclusions_and_figures_from_disk(measured: Path, found: dict[str, Any]) -> None:
    page = (measured / "halflife.html").read_text()
    for name, model in found["models"].items():
        assert name in page
        assert model["conclusion"].split(";")[0] in page
    figures = {path.name for path in (measured / "figures").iterdir()}
    assert {"models.png", "slopes.png", "mixtral-pressure.png", "deepseek-layers.png"} <= figures | {
        "deepseek-layers.png"
    }
    assert page.count("<img ") == len(figures)


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_works_offline_in_a_browser(measured: Path, viewport: dict[str, int]) -> None:
    with launched() as chromium:
        opened = Opened(chromium, measured / "halflife.html", viewport)
        assert opened.complaints == []
        assert opened.overflow() <= 0
        widths = opened.page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert len(widths) > 5
        assert min(widths) > 300
        opened.page.locator("details summary").first.click()
        assert opened.page.locator("details[open] pre").first.inner_text().strip()


def test_the_pressure_taken_apart_is_the_pressure() -> None:
    rng = np.random.default_rng(0)
    inputs = {"m": rng.random(50), "q": rng.random(50), "d_meso": 3 * rng.random(50), "dR": rng.random(50) - 0.5}
    expected = [mid(*(float(inputs[name][n]) for name in INPUTS)) for n in range(50)]
    assert np.allclose(pressure(inputs), expected, rtol=0, atol=1e-15)
    assert np.allclose(sum(terms(inputs).values()), expected, rtol=0, atol=1e-12)


def test_the_documented_mode_has_its_one_value(ask: Ask, runs: dict[str, Path], tmp_path: Path) -> None:
    """0.640301 at temperature 0, whatever is written, but for a tenth of the change of coherence: literals, not a
    measurement."""
    outcome = ask(f"model={runs['mixtral']}", *QUICK, "mode=documented", "temperature=0", "seeds=1", "output=here")
    assert outcome.code == 0, outcome.stderr
    (model,) = json.loads((tmp_path / "here" / "halflife.json").read_text())["models"].values()
    texts = sorted((tmp_path / "here" / "mixtral" / "real").glob("*.pt"))
    chunks = [chunk for path in texts for chunk in read_telemetry(path).chunks]
    assert chunks
    for chunk in chunks:
        assert (chunk.inputs["m"], chunk.inputs["q"], chunk.inputs["d_meso"]) == (0.0, 0.8, 0.2)
        assert math.isclose(chunk.P_mid, 0.640301 + 0.1 * math.tanh(chunk.inputs["dR"] or 0.0), abs_tol=1e-6)
    assert not model["attainable"]["half_reachable"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ([], "model must be given"),
        (["model=[{run},{run}]"], "is named twice"),
        (["model=nowhere"], "is no folder with a checkpoint, and not to be had from the hub"),
        (["model={run}", "chunks=500"], "exceed the model's longest text"),
        (["model={run}", "prompts=nowhere.txt"], "there is no such file"),
        (["model={run}", "prompts=short.txt"], "and the clocks need"),
        (["model={run}", "prompts=broken.jsonl"], "line 1 is no prompt"),
        (["model={run}", "perturb=shouting"], "perturb=shouting: there are none, neutral"),
        (["model={run}", "perturb=neutral", "perturb_at=99"], "perturb_at=99"),
        (["model={run}", "calibration_tokens=1000000"], "lower calibration_tokens"),
        (["model={run}", "prompts=slash.jsonl"], "names a file"),
        (["model={run}", "perturb=offtopic", "num_prompts=1", "perturb_at=4"], "there is one"),
        (["model={run}", "perturb=offtopic", "doses=60", "perturb_at=4"], "and not doses=60"),
        (["model={run}", "temperature=0"], "set seeds=1"),
        (["model={run}", "constraints=temper"], "temper"),
        (["model={dense}"], "routes nothing"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_input_gets_one_line_and_leaves_nothing(
    ask: Ask, runs: dict[str, Path], dense: Path, tmp_path: Path, arguments: list[str], fragment: str
) -> None:
    (tmp_path / "short.txt").write_text("the slow\n\nthe quick\n")
    (tmp_path / "broken.jsonl").write_text("the slow\n")
    (tmp_path / "slash.jsonl").write_text('{"id": "a/b", "text": "the slow"}\n')
    given = [argument.replace("{run}", str(runs["mixtral"])).replace("{dense}", str(dense)) for argument in arguments]
    names = {argument.partition("=")[0] for argument in given}
    quick = [word for word in QUICK if word.partition("=")[0] not in names]
    if "model=nowhere" in given:
        quick.append("calibration=short.txt")
    outcome = ask(*given, *quick, "output=here")
    assert outcome.code == 2, outcome.stderr
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert fragment in line
    assert not (tmp_path / "here").exists()


@pytest.fixture(scope="module")
def dense(trained_run: Callable[..., Path]) -> Path:
    return trained_run("trainer.max_steps=2", "trainer.eval_every_steps=2", "model.dense=true", "chrono=off")


OTHERS = {
    "top_p": ["top_p=0.5"],
    "chunks": ["chunks=11"],
    "prompt": ["prompt_tokens=41"],
    "calibration": ["calibration_tokens=1500"],
    "other passages": ["num_prompts=2"],
    "interruptions": ["doses=3"],
}


def test_what_moves_within_texts_is_told_from_what_differs_between_them() -> None:
    def recording(chunks: int) -> Recording:
        telemetry = SimpleNamespace(chunks=[SimpleNamespace(degenerate=False)] * chunks)
        return Recording(prompt="", genre="", seed=0, telemetry=telemetry, responses=[], text="")  # type: ignore

    moved = within_texts({"m": np.array([1.0, 2.0, 3.0, 11.0, 13.0])}, [recording(3), recording(0), recording(2)])
    assert moved["m"].tolist() == [-1.0, 0.0, 1.0, -1.0, 1.0]


def test_every_arm_is_judged_by_the_range_of_its_own_inputs(found: dict[str, Any]) -> None:
    for model in found["models"].values():
        ranges = {arm: facts["attainable"]["low"] for arm, facts in model["arms"].items() if "attainable" in facts}
        assert len(ranges) >= 3
        assert len(set(ranges.values())) == len(ranges)
        assert model["attainable"] == model["arms"]["real"]["attainable"]


@pytest.mark.parametrize("others", OTHERS.values(), ids=OTHERS.keys())
def test_what_was_recorded_of_something_else_is_refused_and_left_alone(
    ask: Ask, runs: dict[str, Path], tmp_path: Path, others: list[str]
) -> None:
    quick = dict(word.split("=") for word in (*QUICK, "num_prompts=1", "seeds=1", "perturb=neutral", "perturb_at=4"))
    arguments = quick | {"model": str(runs["mixtral"]), "doses": "2", "output": "here"}
    assert ask(*(f"{key}={value}" for key, value in arguments.items())).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    arguments |= dict(word.split("=") for word in others)
    outcome = ask(*(f"{key}={value}" for key, value in arguments.items()))
    assert outcome.code == 2
    assert "choose another folder with output=" in outcome.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def test_interruptions_asked_for_later_leave_the_text_as_it_was(
    ask: Ask, runs: dict[str, Path], tmp_path: Path
) -> None:
    arguments = (f"model={runs['mixtral']}", *QUICK[2:], "num_prompts=1", "seeds=1", "output=here")
    assert ask(*arguments).code == 0
    path = tmp_path / "here" / "mixtral" / "real" / "passage_00-42.pt"
    before = read_telemetry(path)
    assert ask(*arguments, "perturb=random", "perturb_at=4", "doses=2").code == 0
    after = read_telemetry(path)
    assert before.chunks == after.chunks
    assert path.with_suffix(".responses.pt").is_file()


def test_random_interruptions_are_other_ones_at_every_moment(measured: Path) -> None:
    works = []
    for path in sorted((measured / "mixtral" / "real").glob("*.responses.pt")):
        rows = torch.load(path, weights_only=True)["responses"]
        works += [row["work"] for row in rows if row["arm"] == "random" and row["dose"] == 4]
    assert len(works) >= 4
    assert len(set(works)) == len(works)


def test_degenerate_texts_behind_an_interruption_are_left_out_and_counted() -> None:
    def recording(prompt: str, degenerate: bool) -> Recording:
        rows = [
            {"at": 1, "arm": arm, "dose": dose, "work": 9.0 * dose, "inserted": dose}
            | {"P_mid": [0.4 + shift], "P_net": [0.1], "degenerate": [degenerate and arm == "neutral"]}
            for arm, dose, shift in (("none", 0, 0.0), ("neutral", 2, 0.1))
        ]
        return Recording(prompt=prompt, genre="", seed=0, telemetry=None, responses=rows, text=prompt)  # type: ignore

    (cell,) = responses([recording("a", False), recording("b", False), recording("c", True)], 1)
    assert (cell.n, cell.left_out, cell.work) == (2, 1, 18.0)
    assert math.isclose(cell.response[1].estimate or 0.0, 0.1, abs_tol=1e-9)
    assert sustaining_dose([cell], "neutral", 0.45) == 2
    assert sustaining_dose([cell], "neutral", 0.55) is None


def test_weights_that_are_no_numbers_are_refused(ask: Ask, runs: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(runs["mixtral"], tmp_path / "broken")
    for path in (broken / "checkpoints").glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        next(value for value in saved["state_dict"].values() if value.is_floating_point()).view(-1)[0] = math.nan
        torch.save(saved, path)
    outcome = ask(f"model={broken}", *QUICK, "output=here")
    assert outcome.code == 2
    assert "holds NaN" in outcome.stderr


def test_texts_that_end_at_once_are_counted_and_not_averaged(
    ask: Ask, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every token ends the document: nothing is left to measure, which is said in one line."""
    monkeypatch.setattr("chronomoe.session.session.Session.draw", lambda session: session.settings.eos_id)
    outcome = ask(f"model={runs['mixtral']}", *QUICK, "output=here")
    assert outcome.code == 1
    assert "6 of 6 texts ended within their first chunk" in outcome.stderr.splitlines()[-1]


def test_prompts_of_the_package_are_long_enough_and_of_many_kinds(runs: dict[str, Path]) -> None:
    from chronomoe.halflife.prompts import read_prompts

    prompts = read_prompts(None, 99)
    tokenizer = load_tokenizer(str(runs["mixtral"] / "tokenizer")).tokenizer
    assert len(prompts) == 20
    assert len({prompt.genre for prompt in prompts}) >= 4
    assert all(len(tokenizer.encode(prompt.text).ids) >= 32 for prompt in prompts)
    assert any("light-dependent" in prompt.text and "light-independent" in prompt.text for prompt in prompts)


def test_an_exported_model_has_the_half_life_of_its_run(
    ask: Ask, outcome_of: Callable[..., Outcome], trained_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Through transformers and the adapter, greedily: the same texts, and the same pressures but for rounding."""
    pytest.importorskip("transformers")
    run = trained_run(
        "trainer.max_steps=30",
        "trainer.eval_every_steps=30",
        "optim.lr=1e-2",
        *LONG,
        "model.max_seq_len=512",
        "chrono=off",
    )
    assert outcome_of(convert.main, f"source={run}", f"target={tmp_path / 'exported'}").code == 0
    corpus = tmp_path / "usual.txt"
    config = load_config(run / "config.yaml")
    tokens = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True).val_tokens
    corpus.write_text(load_tokenizer(str(run / "tokenizer")).tokenizer.decode(tokens[:6000].tolist()))
    greedy = [word for word in QUICK if not word.startswith(("seeds", "prompts", "prompt_"))]
    greedy += ["seeds=1", "temperature=0", "eos=ban", f"calibration={corpus}"]
    found = {}
    for name, source in (("run", run), ("exported", tmp_path / "exported")):
        outcome = ask(f"model={source}", *greedy, f"output={name}")
        assert outcome.code == 0, outcome.stderr
        (model,) = json.loads((tmp_path / name / "halflife.json").read_text())["models"].values()
        found[name] = model["series"]
    assert len(found["run"]) == len(found["exported"]) == 3
    for mine, theirs in zip(found["run"], found["exported"], strict=True):
        assert mine["chunks"]["text"] == theirs["chunks"]["text"]
        assert np.allclose(mine["chunks"]["P_mid"], theirs["chunks"]["P_mid"], rtol=0, atol=1e-4)
        assert np.allclose(mine["chunks"]["Hn"], theirs["chunks"]["Hn"], rtol=0, atol=1e-4)
