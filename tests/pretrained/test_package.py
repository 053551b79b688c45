"""Models that transformers does not know, exported with their code: loaded where chronomoe cannot be imported, they
compute what they computed here."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import differences

from chronomoe.convert import ConvertSettings, export_run, import_folder
from chronomoe.generate import load_model
from chronomoe.model.generation import generate
from chronomoe.pretrained.package import flat_name, sources, turn_imports
from chronomoe.training.resuming import read_checkpoint

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")

SavedRun = Callable[..., Path]
HYBRID = [
    "model.dim=64", "model.num_layers=3", "model.schedule=RRT", "model.norm=layer", "model.positions=none",
    "model.activation=gelu", "router=cdrmix",
]  # fmt: skip
MODELS: dict[str, list[str]] = {
    "mixtral under a field": ["chrono=sign"],
    "mixtral, field on logits, tied": ["chrono=sign", "chrono.actuation=logits", "model.tie_embeddings=true"],
    "switch": ["router=switch", "router.capacity_factor=1.0", "model.activation=relu", "chrono=sign"],
    "sigmoid gates, shared experts": ["router=deepseek", "router.top_k=2", "model.num_shared_experts=1", "chrono=sign"],
    "hybrid": [*HYBRID, "chrono=sign"],
    "hybrid, window": [*HYBRID, "model.attention_window=7", "chrono=off"],
    "expert choice": ["router=expert_choice", "chrono=off"],
    "dense": ["model.dense=true", "chrono=off"],
}
by_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())

ALONE = """
import sys, torch
sys.modules["chronomoe"] = None  # importing it fails
sys.modules["omegaconf"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, answers = sys.argv[1:]
asked = torch.load(answers)
ids, padded, mask = asked["ids"], asked["padded"], asked["mask"]
load = lambda where, **how: AutoModelForCausalLM.from_pretrained(where, trust_remote_code=True, **how).eval()
model = load(folder)
half = load(folder, dtype=torch.bfloat16)
model.save_pretrained(folder + "-again")
again = load(folder + "-again").state_dict()
choose = dict(max_new_tokens=12, do_sample=False, eos_token_id=None)
labels = ids.masked_fill(ids % 3 == 0, -100)
with torch.no_grad():
    said = {
        "logits": model(ids).logits,
        "padded": model(padded, attention_mask=mask).logits,
        "same_again": all(torch.equal(again[name], weight) for name, weight in model.state_dict().items()),
        "half": half(ids).logits,
        "field": [half.state_dict().get("model." + name) for name in ("expert_bias_LE", "log_temperature_LE")],
        "loss": model(ids, labels=labels).loss,
        "expected_loss": torch.nn.functional.cross_entropy(
            model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        ),
        "generated": model.generate(ids, **choose),
        "uncached": model.generate(ids, use_cache=False, **choose),
        "generated_padded": model.generate(padded, attention_mask=mask, **choose),
        "beams": model.generate(ids, num_beams=3, **choose),
        "uncached_beams": model.generate(ids, num_beams=3, use_cache=False, **choose),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "token_ids": AutoTokenizer.from_pretrained(folder)("the router").input_ids,
    }
torch.save(said, answers)
"""


def alone(folder: Path, *arguments: str, code: str = ALONE) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has transformers and not this project, in the folder's parent."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder.parent / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), *arguments],
        cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def export(run: Path, target: Path, **settings: Any) -> Path:
    export_run(ConvertSettings(source=str(run), target=str(target), form="package", **settings))
    return target


def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.slow
@by_model
def test_a_package_computes_the_same_where_chronomoe_is_not_installed(
    saved_run: SavedRun, tmp_path: Path, overrides: list[str]
) -> None:
    run = saved_run(*overrides, field=1.0)
    folder = export(run, tmp_path / "out", max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, config = load_model(run, "best")
    ids_BS = torch.randint(300, (2, 14), generator=torch.Generator().manual_seed(1))
    mask_BS = torch.ones(2, 19, dtype=torch.long)
    mask_BS[:, :5] = 0
    padded_BS = torch.cat((torch.zeros(2, 5, dtype=torch.long), ids_BS), dim=1)
    torch.save({"ids": ids_BS, "padded": padded_BS, "mask": mask_BS}, tmp_path / "answers.pt")
    ran = alone(folder, str(tmp_path / "answers.pt"))
    assert ran.returncode == 0, ran.stderr
    said = torch.load(tmp_path / "answers.pt")

    with torch.no_grad():
        logits_BSV = model(ids_BS).logits_BSV
        field = [model.expert_bias_LE, model.log_temperature_LE]
        chosen = torch.stack(list(generate(model, ids_BS, max_new_tokens=12, temperature=0)), dim=1)
    assert worst(said["logits"], logits_BSV) < 1e-5
    assert said["same_again"]
    assert worst(said["padded"][:, 5:], logits_BSV) < 1e-5
    assert said["half"].dtype == torch.bfloat16
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(said["field"], field, strict=True))
    assert torch.allclose(said["loss"], said["expected_loss"])
    assert torch.equal(said["generated"][:, 14:], chosen)
    assert torch.equal(said["uncached"], said["generated"])
    assert torch.equal(said["generated_padded"][:, 19:], chosen)
    assert torch.equal(said["beams"], said["uncached_beams"])
    assert said["tied"] == config.model.tie_embeddings
    assert len(said["token_ids"]) > 0


def test_the_field_acts_in_the_package(saved_run: SavedRun, tmp_path: Path) -> None:
    """The same weights without their field compute something else, so the test above is one of the field too."""
    run = saved_run("chrono=sign", field=1.0)
    model, _ = load_model(run, "best")
    ids_BS = torch.randint(300, (2, 14), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        steered = model(ids_BS).logits_BSV
        model.expert_bias_LE.zero_()
        assert worst(model(ids_BS).logits_BSV, steered) > 0.01


@by_model
def test_a_package_comes_back_bit_for_bit(saved_run: SavedRun, tmp_path: Path, overrides: list[str]) -> None:
    run = saved_run(*overrides, field=1.0, dtype=torch.bfloat16)
    folder = export(run, tmp_path / "out")
    import_folder(ConvertSettings(source=str(folder), target=str(tmp_path / "back")))
    before, after = (
        read_checkpoint(path / "checkpoints" / "best.ckpt")["state_dict"] for path in (run, tmp_path / "back")
    )
    assert differences(before, after) == []
    old, new = (load_model(path, "best")[1] for path in (run, tmp_path / "back"))
    assert (old.model, old.router, old.chrono.actuation) == (new.model, new.router, new.chrono.actuation)


def test_code_that_was_not_allowed_is_not_run(saved_run: SavedRun, tmp_path: Path) -> None:
    folder = export(saved_run(), tmp_path / "out")
    (folder / "modeling_chronomoe.py").write_text("open('was_run', 'w')\n")
    code = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    ran = alone(folder, code=code)
    assert ran.returncode != 0
    assert "trust_remote_code" in ran.stderr
    import_folder(ConvertSettings(source=str(folder), target=str(tmp_path / "back")))
    assert not list(tmp_path.rglob("was_run"))


def test_a_package_with_missing_weights_refuses_to_speak(saved_run: SavedRun, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = export(saved_run(), tmp_path / "out")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    code = "import sys; from transformers import AutoModelForCausalLM as A; "
    ran = alone(folder, code=code + "A.from_pretrained(sys.argv[1], trust_remote_code=True)")
    assert "weights are incomplete: norm.weight" in ran.stderr


def test_sources_import_each_other_and_nothing_else_of_this_project() -> None:
    found = sources()
    assert {"modeling_chronomoe.py", "configuration_chronomoe.py", "model_lm.py", "settings.py"} <= found.keys()
    for name, text in found.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("chronomoe"), name
                assert node.level == 0 or f"{node.module}.py" in found, name


def test_the_entry_names_every_file() -> None:
    """transformers 5.0 follows imports no further."""
    found = sources()
    entry = ast.parse(found["modeling_chronomoe.py"])
    named = {f"{node.module}.py" for node in ast.walk(entry) if isinstance(node, ast.ImportFrom) and node.level == 1}
    assert named == found.keys() - {"modeling_chronomoe.py"}


def test_no_two_modules_get_one_name() -> None:
    import chronomoe

    root = Path(chronomoe.__file__).parent
    modules = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("*.py")]
    kept = [module for module in modules if module.startswith(("chronomoe.model.", "chronomoe.pretrained."))]
    assert len({flat_name(module) for module in [*kept, "chronomoe.settings"]}) == len(kept) + 1


def test_only_imports_are_turned() -> None:
    source = "'chronomoe.model.lm, a title.'\nfrom chronomoe.model.lm import X\n  from chronomoe.settings import (\n"
    turned = "'chronomoe.model.lm, a title.'\nfrom .model_lm import X\n  from .settings import (\n"
    assert turn_imports(source) == turned
