"""The configuration: every file in configs/ can be built, says what is so, and survives a round trip."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import MISSING, OmegaConf
from training_runs import PROJECT

from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.config import SCHEMAS, SOURCE_OF_KEY, config_hash, load_config, parse, walk
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sizing import size_of
from chronomoe.settings import InputError, setting

CONFIGS = PROJECT / "configs"
FILES = sorted(path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml"))
OPTIONS = [path for path in FILES if len(path.parts) > 1 and path.parts[0] != "launcher"]  # which no run has
MODELS = [path for path in OPTIONS if path.parts[0] == "model"]
Compose = Callable[..., Any]


def overrides_of(option: Path) -> list[str]:
    """What selects a file of configs/, with what it cannot do without."""
    needs = {
        "data/text": ["data.path=my.txt"],
        "data/huggingface": ["data.name=some/set"],
        "router/expert_choice": ["chrono=off"],
        "chrono/replay": ["chrono.trace=earlier"],
        "chrono/sham": ["chrono.trace=earlier"],
    }
    return [f"{option.parent}={option.name}", *needs.get(str(option), [])]


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes_parses_and_builds(
    compose: Compose, option: Path, recorded_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = parse(compose(*overrides_of(option)))
    (tmp_path / "earlier").symlink_to(recorded_run(config.model.num_layers, config.model.num_experts))
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        model = LanguageModel(config.model, config.router, config.chrono.actuation)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    if config.model.num_experts > 1:
        Chronovisor(config.chrono, config.model.num_layers, config.model.num_experts)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_on_its_first_line_what_it_is(file: Path) -> None:
    lines = [line for line in (CONFIGS / f"{file}.yaml").read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > len("# x y z")


@pytest.mark.parametrize("option", MODELS, ids=str)
def test_the_sizes_in_a_model_file_are_true(compose: Compose, option: Path) -> None:
    config = parse(compose(*overrides_of(option)))
    size = size_of(config.model, config.router)
    first_line = (CONFIGS / f"{option}.yaml").read_text().splitlines()[0]
    stored, active = re.search(r"([\d,.]+) M parameters, ([\d,.]+) M active", first_line).groups()  # type: ignore[union-attr]
    assert float(stored.replace(",", "")) == round(size.stored / 1e6, 1)
    assert float(active.replace(",", "")) == round(size.active / 1e6, 1)


def test_mixtral_8x7b_has_the_published_number_of_parameters(compose: Compose) -> None:
    config = parse(compose("model=mixtral_8x7b"))
    assert size_of(config.model, config.router).stored == 46_702_792_704  # transformers' count for the released weights


@pytest.mark.parametrize(("layers", "experts"), [(2, 8), (4, 16)])
def test_a_model_is_named_after_its_layers_and_experts(compose: Compose, layers: int, experts: int) -> None:
    model = parse(compose(f"model=mixtral_{layers}x{experts}")).model
    assert (model.num_layers, model.num_experts) == (layers, experts)


@pytest.mark.parametrize(
    "option", [path for path in OPTIONS if str(path.parent) in SCHEMAS and path.parent.name != "sweep"], ids=str
)
def test_every_option_starts_from_the_schema_of_its_group(option: Path) -> None:
    defaults = OmegaConf.load(CONFIGS / f"{option}.yaml")["defaults"]
    assert defaults[0] == f"base_{option.parent.name}"


def test_every_law_has_a_file_named_after_it(compose: Compose) -> None:
    for law in LAWS:
        assert parse(compose(*overrides_of(Path("chrono") / law))).chrono.law == law


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), *(law.settings for law in LAWS.values())])
def test_every_setting_says_what_it_means(schema: type) -> None:
    classes = [cls for cls in schema.__mro__ if dataclasses.is_dataclass(cls)]
    tree = [node for cls in classes for node in ast.parse(inspect.getsource(cls)).body[0].body]  # type: ignore[attr-defined]
    described = {
        field.target.id  # type: ignore[attr-defined]
        for field, meaning in itertools.pairwise(tree)
        if isinstance(field, ast.AnnAssign)
        and isinstance(meaning, ast.Expr)
        and isinstance(meaning.value, ast.Constant)
    }
    groups = {field.name for field in dataclasses.fields(schema) if dataclasses.is_dataclass(field.default_factory)}
    assert {field.name for field in dataclasses.fields(schema)} - groups <= described


@pytest.mark.parametrize("overrides", [[], ["chrono=documented"], ["chrono=off"], ["chrono/temperature=structural"]])
def test_a_saved_config_reads_back_equal(configure: Compose, tmp_path: Path, overrides: list[str]) -> None:
    config = configure(*overrides)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("text", ["", "model: 3", "chrono: {law: gone}", "chrono: {law: 'off'}\nsede: 1", "a: [", "\0"])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError):
        load_config(tmp_path / "config.yaml")


def test_the_hash_changes_with_what_shapes_a_run_and_with_nothing_else(configure: Compose) -> None:
    plain = config_hash(configure())
    for same in (["ckpt_path=last"], ["logger=tensorboard"]):
        assert config_hash(configure(*same)) == plain
    changed = [["seed=1"], ["chrono.gamma=0.01"], ["trainer.max_steps=9"], ["chrono=off"], ["optim.lr=1e-5"]]
    assert len({plain, *(config_hash(configure(*other)) for other in changed)}) == len(changed) + 1


def test_schedules_follow_the_length_of_the_run(configure: Compose) -> None:
    assert configure("trainer.max_steps=77").chrono.schedule_steps == 77


def test_ranges_include_their_ends(compose: Compose) -> None:
    for key, value, field in walk(parse(compose())):
        for end in ("low", "high"):
            limit = field.metadata.get(end)
            if (
                isinstance(value, float)
                and limit is not None
                and key not in {"optim.warmup_frac", "chrono.half_life_steps"}
            ):
                source = SOURCE_OF_KEY.get(key.removeprefix("data."))
                parse(compose(f"{key}={limit}", *([f"data={source}"] if source else [])))


def test_a_setting_without_a_default_has_the_mark_that_omegaconf_looks_for() -> None:
    assert setting().default == MISSING
