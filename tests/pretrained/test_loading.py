"""Loading by folder: what comes back, and every way in which a folder can be wrong."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_models import CONFIGS, FAMILIES, tiny_hub_model

from chronomoe.pretrained.families import find_family
from chronomoe.pretrained.loading import load_steered
from chronomoe.pretrained.memory import Footprint, foretell, measure, on_meta
from chronomoe.settings import InputError

pytest.importorskip("transformers")
needs_bitsandbytes = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("bitsandbytes", "accelerate")),
    reason="needs bitsandbytes and accelerate",
)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(name: str = "mixtral", **options: object) -> Path:
        folder = tmp_path / name
        tiny_hub_model(name).save_pretrained(folder, **options)
        return folder

    return save


def line_of(source: object, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        load_steered(str(source), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_comes_back_with_every_bit(name: str, saved: Callable[..., Path]) -> None:
    model = load_steered(str(saved(name)))
    before = tiny_hub_model(name).state_dict()
    assert model.base.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.base.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_weights_have_the_dtype_asked_for_and_the_field_is_fp32(
    dtype: str, expected: str, saved: Callable[..., Path]
) -> None:
    model = load_steered(str(saved()), dtype=dtype)
    assert model.embedding.weight.dtype == getattr(torch, expected)
    assert model.expert_bias_LE.dtype == torch.float32


def test_a_sharded_checkpoint_is_loaded_and_its_broken_shard_named(saved: Callable[..., Path]) -> None:
    folder = saved(max_shard_size="8KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_steered(str(folder))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    assert f"{shards[1]} is broken" in line_of(folder)
    shards[1].unlink()
    assert f"{shards[1]}: there is no such file of weights" in line_of(folder)


def test_weights_of_another_model_are_refused_rather_than_filled_with_random_ones(saved: Callable[..., Path]) -> None:
    assert "missing or of another shape" in line_of(edit(saved(), num_hidden_layers=4))


def test_what_is_no_checkpoint_is_refused_in_one_line(saved: Callable[..., Path], tmp_path: Path) -> None:
    assert "no config.json" in line_of(tmp_path)
    folder = saved()
    assert "LlamaForCausalLM cannot be steered" in line_of(
        edit(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    )
    assert "JambaForCausalLM cannot be steered" in line_of(
        edit(folder, model_type="jamba", architectures=["JambaForCausalLM"])
    )
    assert "no model that can be steered" in line_of(edit(folder, model_type="nobody_knows", architectures=["Nobody"]))
    assert "dtype=fp8: use auto" in line_of(folder, dtype="fp8")
    assert "quantisation=int2: use none" in line_of(folder, quantisation="int2")


def test_code_of_a_checkpoint_is_never_run(saved: Callable[..., Path]) -> None:
    folder = saved()
    trap = folder / "trap.py"
    trap.write_text(f"open({str(folder / 'sprung')!r}, 'w')\nclass Config: pass\n")
    edit(folder, model_type="trapped", auto_map={"AutoConfig": "trap.Config"}, architectures=["Trapped"])
    assert "brings its own code, which is not run" in line_of(folder)
    assert not (folder / "sprung").exists()


def test_a_name_that_is_nowhere_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("chronomoe.data.hub._hub_answers", lambda: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert "not to be had from the hub" in line_of("nobody/has-this")


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_quantisation_that_cannot_reach_the_experts_is_refused_with_the_true_footprint(
    quantisation: str, saved: Callable[..., Path]
) -> None:
    folder = saved()
    message = line_of(folder, quantisation=quantisation, dtype="bf16")
    model = tiny_hub_model("mixtral").to(torch.bfloat16)
    attention = sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name)
    assert f"only {attention / sum(p.numel() for p in model.parameters()):.1%}" in message
    assert "experts are fused" in message


def test_what_is_foretold_on_the_meta_device_is_what_a_loaded_model_weighs() -> None:
    for name, (_, model_class, _) in CONFIGS.items():
        model = tiny_hub_model(name)
        foretold = foretell(on_meta(find_family(model_class), model.config, torch.float32))
        assert foretold == measure(model)
        assert foretold.num_bytes == sum(4 * p.numel() for p in model.parameters())


def test_mixtral_8x7b_weighs_what_the_documentation_says() -> None:
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_local_experts=8,
    )
    model = on_meta(find_family("MixtralForCausalLM"), config, torch.bfloat16)
    plain, four_bits = foretell(model), foretell(model, "nf4")
    assert plain == Footprint(46_702_792_704, 93_405_585_408, 0)
    assert four_bits.quantised == 1_342_177_280
    assert round(four_bits.num_bytes / 1e9, 1) == 91.5
    assert round(foretell(model, "int8").num_bytes / 1e9, 1) == 92.1


@needs_bitsandbytes
@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_a_model_whose_experts_are_linear_is_quantised_and_steered(quantisation: str, tmp_path: Path) -> None:
    """Switch keeps every expert a pair of nn.Linear modules; wide ones are nearly all of it."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 512, "num_experts": 8}
    base = tiny_hub_model("switch", **sizes)
    base.save_pretrained(tmp_path)
    model = load_steered(str(tmp_path), quantisation=quantisation)
    found = measure(model.base)
    assert found.share > 0.9
    assert found.parameters == sum(p.numel() for p in base.parameters())
    assert all(layer.router.classifier.weight.is_floating_point() for layer in model.routers())
    model.expert_bias_LE[:, 1] = 1e3
    ids_BS = torch.randint(1, 32, (1, 8))
    routings = model(ids_BS, source_ids_BS=ids_BS).routings
    assert all((routing.topk_expert_ids_TK == 1).all() for routing in routings)


@needs_bitsandbytes
def test_bitsandbytes_does_leave_fused_experts_as_they_are(tmp_path: Path) -> None:
    """The measurement behind the refusal: should a version reach them, the refusal can go."""
    from transformers import BitsAndBytesConfig, MixtralForCausalLM

    tiny_hub_model("mixtral", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = MixtralForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    assert base.model.layers[0].mlp.experts.gate_up_proj.is_floating_point()
    assert measure(base).share < 0.3
