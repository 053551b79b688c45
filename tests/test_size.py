"""`python -m chronomoe.size`: what a model weighs and costs, in tables or JSON, and one line for a bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from training_runs import Outcome

from chronomoe import size
from chronomoe.config import compose_config
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sizing import size_of

Ask = Callable[..., Outcome]


@pytest.fixture
def ask(outcome_of: Callable[..., Outcome]) -> Ask:
    """ask(*arguments): the command."""
    return partial(outcome_of, size.main)


@pytest.fixture
def found(ask: Ask) -> Callable[..., dict[str, Any]]:
    """found(*arguments): what the command says in JSON."""

    def found(*arguments: str) -> dict[str, Any]:
        outcome = ask("json=true", *arguments)
        assert outcome.code == 0, outcome.stderr
        return dict(json.loads(outcome.stdout))

    return found


@pytest.mark.parametrize("name", ["cdrmix_40b", "mixtral_8x7b"])
def test_json_holds_what_the_model_is(found: Callable[..., dict[str, Any]], name: str) -> None:
    says = found(f"model={name}")
    config = compose_config([f"model={name}"])
    assert (says["stored"], says["active"]) == tuple(size_of(config.model, config.router))
    assert says["hidden_dim"] == config.model.hidden_dim
    assert says["schedule"] == "".join(config.model.kinds)
    for kind in ("stored", "active"):
        assert sum(part[kind] for part in says["parts"].values()) == says[kind]
    assert says["training_flops_per_token"] == 3 * sum(part["flops"] for part in says["parts"].values())


def test_tables_say_what_json_says(ask: Ask, found: Callable[..., dict[str, Any]]) -> None:
    arguments = (
        "model=cdrmix_40b",
        "data.seq_len=4096",
        "trainer=fsdp",
        "trainer.devices=8",
        "mfu=0.5",
        "peak_tflops=400",
    )
    text, says = ask(*arguments).stdout, found(*arguments)
    for number in (says["stored"], says["active"], says["hidden_dim"], says["parts"]["time mixing"]["stored"]):
        assert f"{number:,}" in text
    assert says["schedule"] in text
    assert f"{says['tokens_per_sec']:,.0f} tokens/s on 8 x 400 TFLOP/s at 50%" in text
    assert f"{sum(says['memory_per_device'].values()) / 2**30:,.1f} GiB" in text


def test_tokens_per_second_are_utilised_operations_over_those_of_a_token(found: Callable[..., dict[str, Any]]) -> None:
    says = found("model=cdrmix_1b", "trainer=ddp", "trainer.devices=4", "mfu=0.25", "peak_tflops=100")
    assert says["tokens_per_sec"] == pytest.approx(0.25 * 4 * 100e12 / says["training_flops_per_token"])
    longer = found("model=cdrmix_1b", "data.seq_len=4096")
    assert longer["training_flops_per_token"] > says["training_flops_per_token"]


def test_memory_is_shared_by_fsdp_alone_and_bf16_adds_copies(found: Callable[..., dict[str, Any]]) -> None:
    def memory(*arguments: str) -> float:
        return sum(found("model=cdrmix_4b", *arguments)["memory_per_device"].values())

    stored = found("model=cdrmix_4b")["stored"]
    assert memory("trainer.precision=32-true") == 16 * stored
    assert memory("trainer.precision=bf16-mixed") == 18 * stored
    assert memory("trainer=ddp", "trainer.devices=4", "trainer.precision=32-true") == 16 * stored
    assert memory("trainer=fsdp", "trainer.devices=4", "trainer.precision=32-true") == 16 * stored / 4


SOLVED = {
    "expert": ("expert", 125e6, []),
    "stored": ("stored", 1e9, []),
    "active": ("active", 1e9, []),
    "stored, shared experts": ("stored", 1e9, ["model.num_shared_experts=2"]),
    "active, shared experts": ("active", 1e9, ["model.num_shared_experts=1"]),
    "active, expert choice": ("active", 1e9, ["router=expert_choice", "router.capacity_factor=1.5", "chrono=off"]),
    "stored, transformer": ("stored", 2e9, ["model.schedule=transformer", "model.activation=swiglu"]),
}


@pytest.mark.parametrize(("kind", "target", "overrides"), SOLVED.values(), ids=SOLVED.keys())
def test_a_solved_width_gives_a_model_of_the_target(
    found: Callable[..., dict[str, Any]], kind: str, target: float, overrides: list[str]
) -> None:
    says = found("model=cdrmix_1b", *overrides, f"solve={kind}", f"target={target}")
    config = compose_config(["model=cdrmix_1b", *overrides, f"model.hidden_dim={says['hidden_dim']}"])
    with torch.device("meta"):
        built = LanguageModel(config.model, config.router)
    assert sum(parameter.numel() for parameter in built.parameters()) == says["stored"]
    reached = says["parts"]["experts"]["stored"] / config.model.num_experts if kind == "expert" else says[kind]
    assert reached == pytest.approx(target, rel=0.01)
    for width in (says["hidden_dim"] - 8, says["hidden_dim"] + 8):
        config.model.hidden_dim = width
        other = size_of(config.model, config.router)
        experts = says["parts"]["experts"]["stored"] / says["hidden_dim"] * width / config.model.num_experts
        missed = experts if kind == "expert" else getattr(other, kind)
        assert abs(missed - target) >= abs(reached - target)


WRONG = {
    "a model that is not there": (["model=cdrmix_41b"], "cdrmix_40b"),
    "a key that is not there": (["model=cdrmix_1b", "model.width=3"], "model.width"),
    "no key": (["cdrmix_1b"], "cdrmix_1b"),
    "solve alone": (["model=cdrmix_1b", "solve=expert"], "target"),
    "target alone": (["model=cdrmix_1b", "target=1e9"], "solve"),
    "another kind": (["model=cdrmix_1b", "solve=both", "target=1e9"], "solve=both"),
    "a target of words": (["model=cdrmix_1b", "solve=stored", "target=big"], "target"),
    "a target below the rest": (["model=cdrmix_1b", "solve=stored", "target=5e8"], "546,605,056"),
    "an endless target": (["model=cdrmix_1b", "solve=stored", "target=inf"], "target=inf"),
    "no number": (["model=cdrmix_1b", "solve=stored", "target=nan"], "target=nan"),
    "dense": (["model=cdrmix_1b", "model.dense=true", "chrono=off", "solve=stored", "target=1e9"], "model.dense"),
    "utilisation": (["model=cdrmix_1b", "mfu=40"], "mfu=40"),
    "schedule": (["model=cdrmix_1b", "model.schedule=RRX"], "model.schedule=RRX"),
    "width": (["model=cdrmix_1b", "model.dim=2000"], "model.dim=2000"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "fragment"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_gets_one_line(ask: Ask, arguments: list[str], fragment: str) -> None:
    outcome = ask(*arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line
