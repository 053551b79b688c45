"""Runs as folders of transformers' Mixtral, and such folders as runs: the same numbers both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import edit_json
from training_runs import differences

from chronomoe.convert import ConvertSettings, export_run, import_folder
from chronomoe.generate import load_model
from chronomoe.model.generation import generate
from chronomoe.pretrained.field import FIELD_FILE
from chronomoe.training.resuming import read_checkpoint

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")

SavedRun = Callable[..., Path]
SHAPES = {
    "grouped heads": [],
    "tied, full heads": ["model.tie_embeddings=true", "model.num_kv_heads=4"],
    "one kv head, 8 experts, top-3": ["model.num_kv_heads=1", "model.num_experts=8", "router.top_k=3"],
    "window, long waves": ["model.attention_window=5", "model.rope_theta=1e6", "model.norm_eps=1e-3"],
}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
by_layout = pytest.mark.parametrize("layout", ["v4", "v5"])


def export(run: Path, target: Path, **settings: Any) -> Path:
    export_run(ConvertSettings(source=str(run), target=str(target), **settings))
    return target


def bring_in(folder: Path, target: Path) -> Path:
    import_folder(ConvertSettings(source=str(folder), target=str(target)))
    return target


def theirs(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert type(model).__name__ == "MixtralForCausalLM"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def random_ids(batch: int = 2, length: int = 24, seed: int = 1) -> torch.Tensor:
    return torch.randint(300, (batch, length), generator=torch.Generator().manual_seed(seed))


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@by_shape
@by_layout
def test_an_exported_run_computes_the_same_in_transformers(
    saved_run: SavedRun, tmp_path: Path, shape: list[str], layout: str
) -> None:
    run = saved_run(*shape)
    model, ids_BS = load_model(run, "best")[0], random_ids()
    mixtral = theirs(export(run, tmp_path / "out", layout=layout))
    with torch.no_grad():
        assert worst(mixtral(ids_BS).logits, model(ids_BS).logits_BSV) < 1e-5


@by_shape
@by_layout
def test_a_folder_of_transformers_computes_the_same_here(
    saved_run: SavedRun, tmp_path: Path, tokenizer_folder: Path, shape: list[str], layout: str
) -> None:
    from transformers import AutoTokenizer, MixtralForCausalLM

    from chronomoe.pretrained.mixtral import mixtral_config

    config = load_model(saved_run(*shape), "best")[1]
    torch.manual_seed(5)
    original = MixtralForCausalLM(mixtral_config(config.model, config.router)).eval()
    folder = tmp_path / "theirs"
    original.save_pretrained(folder, max_shard_size="40KB", save_original_format=layout == "v4")
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    model, brought = load_model(bring_in(folder, tmp_path / "in"), "best")
    ids_BS = random_ids()
    with torch.no_grad():
        assert worst(model(ids_BS).logits_BSV, original(ids_BS).logits) < 1e-5
    assert brought.model == config.model
    assert brought.router == config.router


def test_a_configuration_of_transformers_4_is_read_alike(saved_run: SavedRun, tmp_path: Path) -> None:
    folder = export(saved_run(*SHAPES["window, long waves"]), tmp_path / "out")
    edit_json(folder / "config.json", rope_parameters=None, dtype=None, transformers_version="4.36.0")
    assert "rope_parameters" not in json.loads((folder / "config.json").read_text())
    brought = load_model(bring_in(folder, tmp_path / "back"), "best")[1].model
    assert (brought.rope_theta, brought.attention_window, brought.norm_eps) == (1e6, 5, 1e-3)


def test_the_two_layouts_on_disk_are_those_of_transformers_4_and_5(saved_run: SavedRun, tmp_path: Path) -> None:
    from safetensors import safe_open

    run = saved_run()
    names = {}
    for layout in ("v4", "v5"):
        folder = export(run, tmp_path / layout, layout=layout)
        with safe_open(folder / "model.safetensors", framework="pt") as opened:
            names[layout] = set(opened.keys())
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names["v4"]
    assert "model.layers.1.mlp.experts.gate_up_proj" in names["v5"]
    assert not any(".mlp." in name for name in names["v4"])
    assert not any("block_sparse_moe" in name for name in names["v5"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@by_layout
def test_there_and_back_is_the_same_bit_for_bit(
    saved_run: SavedRun, tmp_path: Path, dtype: torch.dtype, layout: str
) -> None:
    run = saved_run("chrono=sign", "chrono.actuation=logits", field=1.0, dtype=dtype)
    folder = export(run, tmp_path / "out", layout=layout, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    back = bring_in(folder, tmp_path / "back")
    before, after = (read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"] for path in (run, back))
    assert before["model.embedding.weight"].dtype == dtype
    assert before["model.expert_bias_LE"].abs().min() > 0
    assert differences(before, after) == []
    old, new = (load_model(path, "best")[1] for path in (run, back))
    assert (old.model.num_layers, old.router.top_k) == (new.model.num_layers, new.router.top_k)
    assert new.chrono.actuation == "logits"


def test_half_precision_loads_in_transformers_as_it_is(saved_run: SavedRun, tmp_path: Path) -> None:
    run = saved_run(dtype=torch.bfloat16)
    mixtral = theirs(export(run, tmp_path / "out"), dtype="auto")
    assert mixtral.dtype == torch.bfloat16
    saved = read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
    assert torch.equal(mixtral.lm_head.weight, saved["model.head.weight"])


def test_the_tokenizer_says_the_same_on_both_sides(saved_run: SavedRun, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from chronomoe.data.tokenizer import load_tokenizer

    run = saved_run()
    folder = export(run, tmp_path / "out")
    there, here = AutoTokenizer.from_pretrained(folder), load_tokenizer(str(run / "tokenizer"))
    back = load_tokenizer(str(bring_in(folder, tmp_path / "back") / "tokenizer"))
    for text in ("the router", "déjà vu 🕰\n\n\t end", "a<|endoftext|>b", ""):
        ids = here.tokenizer.encode(text).ids
        assert there(text).input_ids == ids
        assert there.decode(ids) == here.tokenizer.decode(ids, skip_special_tokens=False)
        assert back.tokenizer.encode(text).ids == ids
    assert there.eos_token_id == there.pad_token_id == here.eos_id == back.eos_id
    assert there.model_max_length == 96


def test_both_generate_the_same_and_stop_at_the_end_of_a_document(saved_run: SavedRun, tmp_path: Path) -> None:
    run = saved_run()
    folder = export(run, tmp_path / "out")
    mixtral, (model, _) = theirs(folder), load_model(run, "best")
    prompt_BS = random_ids(2, 6)
    ours = torch.stack(list(generate(model, prompt_BS, max_new_tokens=30, temperature=0)), dim=1)
    eos_id = mixtral.generation_config.eos_token_id
    assert eos_id == json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0
    found = mixtral.generate(prompt_BS, max_new_tokens=30, do_sample=False, eos_token_id=None)[:, 6:]
    assert torch.equal(found, ours)


def test_a_neutral_field_is_said_to_change_nothing(saved_run: SavedRun, tmp_path: Path) -> None:
    run = saved_run()
    said = export_run(ConvertSettings(source=str(run), target=str(tmp_path / "out")))
    assert "neutral" in said
    assert json.loads((tmp_path / "out" / FIELD_FILE).read_text())["effect_of_leaving_it_out"] is None


def test_what_is_said_of_a_lost_field_is_what_transformers_shows(saved_run: SavedRun, tmp_path: Path) -> None:
    """The difference between the run and its export, on other tokens, is of the size that the command measured."""
    run = saved_run("chrono=sign", field=2.0)
    said = export_run(ConvertSettings(source=str(run), target=str(tmp_path / "out")))
    effect = json.loads((tmp_path / "out" / FIELD_FILE).read_text())["effect_of_leaving_it_out"]
    assert f"{effect['rerouted']:.1%} of assignments" in said
    model, ids_BS = load_model(run, "best")[0], random_ids(8, 60)
    with torch.no_grad():
        difference = (theirs(tmp_path / "out")(ids_BS).logits - model(ids_BS).logits_BSV).abs().mean()
    assert effect["rerouted"] > 0.2
    assert effect["kl_nats"] > 0
    assert float(difference) == pytest.approx(effect["mean_logit_difference"], rel=0.5)


def test_other_settings_of_the_run_become_those_of_the_folder(saved_run: SavedRun, tmp_path: Path) -> None:
    folder = export(saved_run(*SHAPES["window, long waves"]), tmp_path / "out")
    config = theirs(folder).config
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 1e6  # where transformers 4 looks
    assert config.sliding_window == 5
    assert config.max_position_embeddings == 96
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.rms_norm_eps == 1e-3
