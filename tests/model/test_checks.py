"""Models and routers that contradict themselves or their law are refused in one line that says the key and the fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chronomoe.model.checks import check_model, check_router
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError

SWITCH = {"kind": "switch", "gate": "softmax", "top_k": 1}
EXPERT_CHOICE = {"kind": "expert_choice", "gate": "softmax", "capacity_factor": 2.0}
GOOD = [
    {"kind": "mixtral"},
    {"kind": "mixtral", "top_k": 4, "capacity_factor": 1e-9},
    {"kind": "mixtral", "gate": "sigmoid", "jitter": 0.1},
    SWITCH,
    SWITCH | {"capacity_factor": 1.25, "jitter": 0.01},
]
BAD = {
    "capacity 0": ({"kind": "mixtral", "capacity_factor": 0.0}, "capacity_factor=0.0", "null"),
    "capacity below 0": (SWITCH | {"capacity_factor": -1.0}, "capacity_factor=-1.0", "positive"),
    "capacity nan": (SWITCH | {"capacity_factor": float("nan")}, "capacity_factor=nan", "positive"),
    "endless capacity": (SWITCH | {"capacity_factor": float("inf")}, "capacity_factor=inf", "null"),
    "more experts than there are": ({"kind": "mixtral", "top_k": 5}, "top_k=5", "num_experts=4"),
    "switch with two": (SWITCH | {"top_k": 2}, "top_k=2", "router=mixtral"),
    "switch without probabilities": (SWITCH | {"gate": "sigmoid"}, "gate=sigmoid", "gate=softmax"),
    "token choice that looks ahead": (SWITCH | {"causal": False}, "causal=false", "router=expert_choice"),
    "expert choice without capacity": (EXPERT_CHOICE | {"capacity_factor": None}, "capacity_factor=null", "such as 2"),
    "expert choice of more than all": (EXPERT_CHOICE | {"capacity_factor": 4.5}, "capacity_factor=4.5", "experts=4"),
    "expert choice by top_k": (EXPERT_CHOICE | {"top_k": 3}, "top_k=3", "capacity_factor=3"),
    "expert choice by sigmoid": (EXPERT_CHOICE | {"gate": "sigmoid"}, "gate=sigmoid", "gate=softmax"),
    "expert choice with jitter": (EXPERT_CHOICE | {"jitter": 0.1}, "jitter=0.1", "jitter=0"),
    "expert choice with a balance loss": (EXPERT_CHOICE | {"load_balancing_weight": 0.1}, "weight=0.1", "weight=0"),
}


@pytest.mark.parametrize("router", GOOD, ids=str)
def test_what_fits_passes_under_any_law(tiny_settings: Callable[..., ModelSettings], router: dict[str, object]) -> None:
    check_router(tiny_settings(), RouterSettings(**router), "chronovisor")  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [True, False])
def test_expert_choice_runs_without_control_only(tiny_settings: Callable[..., ModelSettings], causal: bool) -> None:
    router = RouterSettings(**EXPERT_CHOICE, causal=causal)  # type: ignore[arg-type]
    check_router(tiny_settings(), router, "off")
    with pytest.raises(InputError, match=r"chrono\.law=sign .* add chrono=off"):
        check_router(tiny_settings(), router, "sign")


@pytest.mark.parametrize(("router", "fault", "way_out"), BAD.values(), ids=BAD.keys())
def test_what_contradicts_itself_is_refused_in_one_line(
    tiny_settings: Callable[..., ModelSettings], router: dict[str, object], fault: str, way_out: str
) -> None:
    with pytest.raises(InputError) as refusal:
        check_router(tiny_settings(), RouterSettings(**router), "off")  # type: ignore[arg-type]
    message = str(refusal.value)
    assert message.startswith("router.")
    assert fault in message
    assert way_out in message
    assert "\n" not in message


FITTING: list[dict[str, object]] = [
    {"dim": 64, "schedule": "RT"},
    {"dim": 64, "schedule": "hybrid", "attention_share": "0.5", "attention_window": 8, "positions": "none"},
    {"dim": 64, "schedule": "top", "attention_share": "0"},
    {"dim": 64, "schedule": "RR"},
    {"positions": "none"},  # the causal mask tells what came before
    {"attention_window": 1},
]
CLASHING: dict[str, tuple[dict[str, object], str, str]] = {
    "an unknown schedule": ({"schedule": "middle"}, "schedule=middle", "RRRT"),
    "small letters": ({"schedule": "rt"}, "schedule=rt", "RRRT"),
    "a letter too many": ({"schedule": "RTT", "dim": 64}, "3 blocks", "num_layers=2"),
    "no letters": ({"schedule": ""}, "0 blocks", "num_layers=2"),
    "words for a share": ({"schedule": "top", "attention_share": "few", "dim": 64}, "attention_share=few", "1/4"),
    "a share of nothing": ({"schedule": "top", "attention_share": "1/0", "dim": 64}, "attention_share=1/0", "1/4"),
    "a share above all": ({"schedule": "top", "attention_share": "1.5", "dim": 64}, "attention_share=1.5", "0 and 1"),
    "a share below none": ({"schedule": "top", "attention_share": "-1/4", "dim": 64}, "share=-1/4", "0 and 1"),
    "a share of a list": ({"schedule": "RT", "attention_share": "1/2", "dim": 64}, "attention_share=1/2", "hybrid"),
    "a share of a transformer": ({"attention_share": "1/2"}, "attention_share=1/2", "schedule=hybrid"),
    "heads of another width": ({"schedule": "RT", "dim": 96, "num_heads": 2}, "dim=96", "128"),
    "narrower than a head": ({"schedule": "RT"}, "dim=16", "64"),
    "a window in a recurrent stack": ({"schedule": "RR", "dim": 64, "attention_window": 8}, "window=8", "window=null"),
    "a window that a share leaves none": (
        {"schedule": "hybrid", "dim": 64, "attention_window": 8},  # a quarter of two blocks is none
        "window=8",
        "num_layers=2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", FITTING, ids=str)
def test_a_model_that_fits_passes(tiny_settings: Callable[..., ModelSettings], model: dict[str, object]) -> None:
    check_model(tiny_settings(**model))


@pytest.mark.parametrize(("model", "fault", "way_out"), CLASHING.values(), ids=CLASHING.keys())
def test_a_model_that_contradicts_itself_is_refused_in_one_line(
    tiny_settings: Callable[..., ModelSettings], model: dict[str, object], fault: str, way_out: str
) -> None:
    with pytest.raises(InputError) as refusal:
        check_model(tiny_settings(**model))
    message = str(refusal.value)
    assert message.startswith("model.")
    assert fault in message
    assert way_out in message
    assert "\n" not in message
