"""`python -m chronomoe.convert`: what it leaves and says, and one line for everything it cannot convert, with nothing
left behind."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import edit_json
from training_runs import Outcome

from chronomoe import convert, generate
from chronomoe.convert import ConvertSettings, export_run

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")

SavedRun = Callable[..., Path]
Convert = Callable[..., Outcome]


@pytest.fixture
def convert_to(outcome_of: Callable[..., Outcome], tmp_path: Path) -> Convert:
    """convert_to(source, *arguments): the command, its target `made` in the test's own folder."""
    target = f"target={tmp_path / 'made'}"
    return lambda source, *arguments: outcome_of(convert.main, f"source={source}", target, *arguments)


@pytest.fixture
def folder(saved_run: SavedRun, tmp_path: Path) -> Path:
    """A small Mixtral of transformers in several shards, experts one by one."""
    target = tmp_path / "mixtral"
    export_run(ConvertSettings(source=str(saved_run()), target=str(target), max_shard_size="30KB"))
    return target


def refused(outcome: Outcome, *fragments: str, made: Path, code: int = 2) -> None:
    """One line on stderr that says it all, nothing on stdout, nothing written."""
    assert outcome.code == code, outcome
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    for fragment in fragments:
        assert fragment in line
    assert not made.exists()
    assert not list(made.parent.glob(".made*"))


def test_a_run_goes_out_and_comes_back_and_writes_the_same_text(
    saved_run: SavedRun, convert_to: Convert, outcome_of: Callable[..., Outcome], tmp_path: Path
) -> None:
    run = saved_run("chrono=sign", field=1.0)
    out = convert_to(run, f"target={tmp_path / 'out'}")
    assert out.code == 0
    assert out.stderr == ""
    assert out.stdout.startswith(f"{tmp_path / 'out'}: mixtral, ")
    assert "of assignments go elsewhere" in out.stdout
    back = convert_to(tmp_path / "out", f"target={tmp_path / 'back'}")
    assert back.code == 0
    assert f"chronomoe.generate run={tmp_path / 'back'}" in back.stdout
    asked = ("prompt=the router", "max_new_tokens=20", "seed=4")
    texts = {outcome_of(generate.main, f"run={path}", *asked).stdout for path in (run, tmp_path / "back")}
    assert len(texts) == 1
    assert texts.pop().startswith("the router")


@pytest.mark.parametrize(
    ("overrides", "arguments", "form"),
    [
        ([], [], "mixtral"),
        ([], ["form=auto"], "mixtral"),
        ([], ["form=package"], "package"),
        (["router=switch", "chrono=off"], [], "package"),
        (["router.gate=sigmoid"], [], "package"),
        (["model.dense=true", "chrono=off"], [], "package"),
    ],
)
def test_the_form_is_a_mixtral_where_the_model_is_one(
    saved_run: SavedRun, convert_to: Convert, tmp_path: Path, overrides: list[str], arguments: list[str], form: str
) -> None:
    assert f": {form}, " in convert_to(saved_run(*overrides), *arguments).stdout
    described = json.loads((tmp_path / "made" / "config.json").read_text())
    assert described["model_type"] == {"mixtral": "mixtral", "package": "chronomoe"}[form]


NOT_OF_A_RUN: dict[str, tuple[list[str], list[str], list[str]]] = {
    "switch as mixtral": (["router=switch", "chrono=off"], ["form=mixtral"], ["router.kind=switch", "form=package"]),
    "hybrid as mixtral": (["model.dim=64", "model.schedule=RT"], ["form=mixtral"], ["model.schedule=RT"]),
    "relu as mixtral": (["model.activation=relu"], ["form=mixtral"], ["model.activation=relu"]),
    "no causal rule": (["router=expert_choice", "router.causal=false", "chrono=off"], [], ["router.causal=false"]),
    "layout of a package": ([], ["form=package", "layout=v5"], ["layout=v5"]),
    "unknown layout": ([], ["layout=v6"], ["layout=v6", "v5"]),
    "size": ([], ["max_shard_size=big"], ["max_shard_size=big", "5GB"]),
    "no such checkpoint": ([], ["checkpoint=last"], ["last.ckpt"]),
    "unknown key": ([], ["form_=x"], ["did you mean 'form'"]),
}


@pytest.mark.parametrize(("overrides", "arguments", "fragments"), NOT_OF_A_RUN.values(), ids=NOT_OF_A_RUN.keys())
def test_what_no_export_can_be_gets_one_line(
    saved_run: SavedRun,
    convert_to: Convert,
    tmp_path: Path,
    overrides: list[str],
    arguments: list[str],
    fragments: list[str],
) -> None:
    refused(convert_to(saved_run(*overrides), *arguments), *fragments, made=tmp_path / "made")


CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dense": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_local_experts": None},
        ["dense model (LlamaForCausalLM)"],
    ),
    "unknown class": ({"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}, ["Qwen2MoeForCausalLM"]),
    "remote code": (
        {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": {"AutoModel": "mine.Mine"}},
        ["it brings code of its own", "never run"],
    ),
    "rope scaling, v5": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["rope scaling (yarn)"]),
    "rope scaling, v4": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope scaling (linear)"]),
    "attention bias": ({"attention_bias": True}, ["attention_bias"]),
    "activation": ({"hidden_act": "gelu"}, ["hidden_act=gelu"]),
    "head width": ({"head_dim": 16}, ["head_dim=16"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantised"]),
    "no experts": ({"num_local_experts": None}, ["num_local_experts"]),
    "top-k beyond experts": ({"num_experts_per_tok": 9}, ["router.top_k=9"]),
    "not a number": ({"num_hidden_layers": "two"}, ["config.json"]),
    "other shapes": ({"intermediate_size": 48}, ["block_sparse_moe.experts.0.w1.weight is [24, 32]", "[48, 32]"]),
    "more layers": ({"num_hidden_layers": 3}, ["lacks model.layers.2."]),
    "fewer layers": ({"num_hidden_layers": 1}, ["holds model.layers.1.", "no place"]),
    "small vocabulary": ({"vocab_size": 20}, ["vocab_size"]),
}


@pytest.mark.parametrize(("changes", "fragments"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_folder_that_is_no_such_model_gets_one_line(
    folder: Path, convert_to: Convert, tmp_path: Path, changes: dict[str, Any], fragments: list[str]
) -> None:
    (folder / "chronomoe_field.json").unlink()
    edit_json(folder / "config.json", **changes)
    refused(convert_to(folder), str(folder), *fragments, made=tmp_path / "made")


def truncate(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def overwrite(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].write_bytes(b"not a shard")


def lose_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[2].unlink()


def lose_from_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    del listed["model.norm.weight"]
    edit_json(index, weight_map=listed)


def point_outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    edit_json(index, weight_map=dict.fromkeys(listed, "../elsewhere.safetensors"))


def pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def break_field(folder: Path) -> None:
    edit_json(folder / "chronomoe_field.json", expert_bias_LE=[[1.0]])


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated shard": (truncate, ["-00002-of-", "truncated"]),
    "shard of other bytes": (overwrite, ["-00001-of-", "truncated or broken"]),
    "missing shard": (lose_shard, ["lacks the shard model-00003-of-"]),
    "missing in the index": (lose_from_index, ["lacks model.norm.weight"]),
    "path out of the folder": (point_outside, ["lacks the shard ../elsewhere"]),
    "pickled weights": (pickled, ["no model.safetensors", "pickled"]),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), ["config.json is broken"]),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "broken field": (break_field, ["chronomoe_field.json"]),
    "unknown actuation": (lambda f: edit_json(f / "chronomoe_field.json", actuation="both"), ["actuation=both"]),
}


@pytest.mark.parametrize(("damage", "fragments"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_folder_gets_one_line(
    folder: Path, convert_to: Convert, tmp_path: Path, damage: Callable[[Path], object], fragments: list[str]
) -> None:
    damage(folder)
    refused(convert_to(folder), str(folder), *fragments, made=tmp_path / "made")


def test_a_missing_source_gets_one_line(convert_to: Convert, tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", "nowhere", "./no/where"):
        refused(convert_to(source), f"source={source}: there is no such folder", made=tmp_path / "made")


def test_a_hub_name_without_a_hub_gets_one_line(
    convert_to: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronomoe.data.hub._hub_answers", lambda: False)
    refused(convert_to("nobody/nothing"), "not to be had from the hub", "give a folder", made=tmp_path / "made")


def test_a_hub_name_is_fetched_and_read(
    folder: Path, convert_to: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def snapshot_download(name: str, **options: Any) -> str:
        fetched.append(name)
        return str(folder)

    monkeypatch.setattr("chronomoe.data.hub._hub_answers", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert convert_to("somebody/mixtral").code == 0
    assert fetched == ["somebody/mixtral"]
    assert (tmp_path / "made" / "checkpoints" / "best.ckpt").exists()


def test_settings_of_an_export_are_refused_for_a_folder(folder: Path, convert_to: Convert, tmp_path: Path) -> None:
    for argument in ("layout=v4", "form=package", "checkpoint=best", "max_shard_size=1GB"):
        refused(convert_to(folder, argument), argument.split("=")[0], "leave it out", made=tmp_path / "made")


def test_a_target_that_is_taken_is_left_as_it_is(
    folder: Path, saved_run: SavedRun, convert_to: Convert, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").write_text("1")
    for source in (folder, saved_run(into="another")):
        outcome = convert_to(source, f"target={tmp_path / 'taken'}")
        refused(outcome, f"target={tmp_path / 'taken'} is there already", made=tmp_path / "made")
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["a"]


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    folder: Path, saved_run: SavedRun, convert_to: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run(into="another")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1000))
    for source in (folder, run):
        refused(convert_to(source), "target=", "GB free", made=tmp_path / "made")


def test_a_disk_that_fills_up_leaves_nothing(
    folder: Path, saved_run: SavedRun, convert_to: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run(into="another")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    refused(convert_to(folder), "No space left", str(tmp_path / "made"), made=tmp_path / "made", code=1)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    refused(convert_to(run), "No space left", str(tmp_path / "made"), made=tmp_path / "made", code=1)


def test_without_transformers_the_line_says_what_to_install(
    convert_to: Convert, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronomoe.convert.find_spec", lambda name: None)
    refused(convert_to(folder), 'pip install -e ".[hf]"', made=tmp_path / "made")


def test_a_checkpoint_of_another_model_gets_one_line(saved_run: SavedRun, convert_to: Convert, tmp_path: Path) -> None:
    run, other = saved_run(), saved_run("model.num_layers=3", into="other")
    (run / "checkpoints" / "best.ckpt").write_bytes((other / "checkpoints" / "best.ckpt").read_bytes())
    refused(convert_to(run), "not of the model of config.yaml", made=tmp_path / "made")


def test_what_came_in_can_be_evaluated(
    folder: Path, convert_to: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config names text and tokenizer, so the commands that read a run find all they need."""
    assert convert_to(folder).code == 0
    model, config = generate.load_model(tmp_path / "made", "best")
    assert config.data.tokenizer == str(tmp_path / "made" / "tokenizer")
    assert config.data.seq_len <= config.model.max_seq_len
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())
