"""Choosing kernels: measured once, by a wide margin, remembered, and kept by the run that they were chosen for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import Finished

from chronomoe.model.attention import Attention
from chronomoe.model.experts import ExpertBank
from chronomoe.model.lm import LanguageModel
from chronomoe.model.products import Linear
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.training import autotune
from chronomoe.training.autotune import Kernels, Workload, choose_kernels, fastest, read_known, use
from chronomoe.training.module import LanguageModule
from chronomoe.training.settings import OptimSettings, TrainerSettings

CHOSEN = Kernels(library="onednn", attention="sdpa", experts="looped", elementwise="compiled")
"""Nothing that is a default."""

Choose = Callable[..., Kernels]


@pytest.fixture
def choose(tiny_settings: Callable[..., ModelSettings], tmp_path: Path) -> Choose:
    """choose(length=8, num_experts=8): the choice for the tiny model on this processor, cached in `tmp_path`/cache."""

    def choose(
        length: int = 16,
        batch: int = 2,
        dtype: torch.dtype = torch.float32,
        cache: Path = tmp_path / "cache",
        top_k: int = 2,
        **overrides: object,
    ) -> Kernels:
        work = Workload(batch=batch, length=length, dtype=dtype, device=torch.device("cpu"))
        router = RouterSettings(kind="mixtral", top_k=top_k)
        return choose_kernels(tiny_settings(**overrides), router, work, cache)

    return choose


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Kernels]:
    """What `measure` found: every call adds one, and finds CHOSEN."""
    found: list[Kernels] = []

    def measure(*_: object) -> Kernels:
        found.append(CHOSEN)
        return CHOSEN

    monkeypatch.setattr(autotune, "measure", measure)
    return found


def refuse(*_: object) -> Kernels:
    raise AssertionError("measured again")


def test_a_remembered_choice_is_read_without_measuring(
    choose: Choose, measured: list[Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose() == CHOSEN
    assert len(measured) == 1
    monkeypatch.setattr(autotune, "measure", refuse)
    assert choose() == CHOSEN


def test_other_shapes_and_another_machine_are_measured_anew_and_all_are_remembered(
    choose: Choose, measured: list[Kernels], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"length": 8}, {"batch": 3}, {"dtype": torch.bfloat16}, {"num_experts": 8}, {"hidden_dim": 32},
        {"num_heads": 2}, {"num_kv_heads": 1}, {"activation": "relu"}, {"dense": True}, {"top_k": 1},
    ]  # fmt: skip

    def choose_all() -> None:
        for overrides in settings:
            choose(**overrides)

    choose_all()
    assert len(measured) == len(settings)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(autotune, "processor_name", lambda: "another processor")
        choose()
    assert len(measured) == len(settings) + 1
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch, "get_num_threads", lambda: 99)
        choose()
    assert len(measured) == len(settings) + 2
    monkeypatch.setattr(autotune, "measure", refuse)
    choose_all()


def test_what_is_measured_here_is_one_of_the_candidates_and_leaves_the_random_numbers_alone(choose: Choose) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = choose()
    assert torch.equal(torch.get_rng_state(), before)
    assert found.library in ("torch", "onednn")
    assert found.attention in ("products", "sdpa")
    assert (found.experts, found.elementwise) == ("auto", "eager")  # chosen on GPUs only
    assert choose() == found
    assert torch.equal(torch.get_rng_state(), before)


def test_measuring_works_where_gradients_are_off(choose: Choose) -> None:
    with torch.no_grad():
        choose()
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("left", ["nothing", '{"a": ', "[1, 2]", "null", "\x00\x01", '{"a": 3}'])
def test_a_file_that_holds_something_else_is_written_anew(
    choose: Choose, measured: list[Kernels], tmp_path: Path, left: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels.json").write_text(left)
    assert choose() == CHOSEN
    assert list(json.loads((tmp_path / "cache" / "kernels.json").read_text()).values()) == [asdict(CHOSEN)]
    assert choose() == CHOSEN
    assert len(measured) == 1


def test_a_file_that_is_no_text_is_written_anew(choose: Choose, measured: list[Kernels], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kernels.json").write_bytes(b"\xff\xfe\xff")
    assert choose() == CHOSEN
    assert len(measured) == 1


def test_a_cache_that_cannot_be_written_costs_a_measurement_per_start(
    choose: Choose, measured: list[Kernels], tmp_path: Path
) -> None:
    file = tmp_path / "a file where the folder should be"
    file.write_text("")
    for starts in (1, 2):
        assert choose(cache=file) == CHOSEN
        assert len(measured) == starts


def test_a_file_that_cannot_be_replaced_costs_a_measurement_but_no_choice(
    choose: Choose, measured: list[Kernels], tmp_path: Path
) -> None:
    (tmp_path / "cache" / "kernels.part").mkdir(parents=True)
    assert choose() == CHOSEN
    assert measured


@pytest.mark.parametrize("change", [{"removed": "elementwise"}, {"added": "softmax"}])
def test_choices_with_other_fields_are_another_versions_and_ignored(
    choose: Choose, measured: list[Kernels], tmp_path: Path, change: dict[str, str]
) -> None:
    choose()
    path = tmp_path / "cache" / "kernels.json"
    known = json.loads(path.read_text())
    ((key, choice),) = known.items()
    other = {name: value for name, value in choice.items() if name != change.get("removed")}
    other |= {change["added"]: "fast"} if "added" in change else {}
    path.write_text(json.dumps({key: other, "another": choice}))
    assert read_known(path) == {"another": choice}
    assert choose() == CHOSEN
    assert len(measured) == 2
    assert json.loads(path.read_text())[key] == choice


class Timed(nn.Module):
    """Forward takes as long as its kernel says, by a clock of its own: `seconds[kernel]`, one after another."""

    kernel = "never set"

    def __init__(self, **seconds: list[float] | float) -> None:
        super().__init__()
        self.seconds = {k: s if isinstance(s, list) else [s] * 100 for k, s in seconds.items()}
        self.calls: list[str] = []
        self.now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.seconds[self.kernel][self.calls.count(self.kernel)]
        self.calls.append(self.kernel)
        return 2.0 * x


@pytest.fixture
def fastest_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Timed], str]:
    def fastest_of(module: Timed) -> str:
        monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: module.now))
        return fastest(module, "kernel", tuple(module.seconds), torch.ones(2, 3))

    return fastest_of


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [(1.0, 2.0, "first"), (1.0, 1.0, "first"), (1.0, 0.95, "first"), (1.0, 0.92, "first"), (1.0, 0.9, "second")],
)
def test_the_first_stays_unless_another_is_faster_by_the_margin(
    fastest_of: Callable[[Timed], str], first: float, second: float, chosen: str
) -> None:
    assert autotune.MARGIN == 1.1
    assert fastest_of(Timed(first=first, second=second)) == chosen


def test_of_several_that_are_faster_the_fastest_is_chosen(fastest_of: Callable[[Timed], str]) -> None:
    assert fastest_of(Timed(first=1.0, second=0.8, third=0.5)) == "third"


def test_candidates_take_turns_and_neither_warm_up_nor_outliers_count(fastest_of: Callable[[Timed], str]) -> None:
    """What is compiled or interrupted once would decide a mean, or a sum with the first calls."""
    slow_start = [100.0] * autotune.WARM_UP + [1.0] * (autotune.REPEATS - 2) + [50.0, 50.0]
    module = Timed(first=2.0, second=slow_start)
    assert fastest_of(module) == "second"
    assert module.calls == ["first", "second"] * (autotune.WARM_UP + autotune.REPEATS)


def test_use_reaches_every_module(tiny_model: Callable[..., LanguageModel]) -> None:
    model = tiny_model()
    use(model, CHOSEN)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    banks = [module for module in model.modules() if isinstance(module, ExpertBank)]
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert len(banks) == len(attentions) == 2
    assert len(linears) >= 4
    assert {module.library for module in linears + banks} == {"onednn"}
    assert {module.kernel for module in banks} == {"looped"}
    assert {module.kernel for module in attentions} == {"sdpa"}
    assert {module.elementwise for module in banks + attentions} == {"compiled"}
    assert Linear.library == "torch"  # other models keep theirs
    use(model, Kernels())
    assert {module.library for module in linears + banks} == {"torch"}


@pytest.mark.parametrize("library", ["torch", "onednn"])
@pytest.mark.parametrize("attention", ["products", "sdpa"])
def test_every_choice_computes_the_same_function(
    tiny_model: Callable[..., LanguageModel], draw_ids: Callable[..., Tensor], library: str, attention: str
) -> None:
    model, ids_BS = tiny_model(), draw_ids(2, 16)
    expected_BSV = model(ids_BS).logits_BSV
    use(model, Kernels(library=library, attention=attention))
    torch.testing.assert_close(model(ids_BS).logits_BSV, expected_BSV, rtol=1e-4, atol=1e-5)


def test_a_choice_is_said_in_one_line() -> None:
    assert str(CHOSEN) == "kernels: library onednn, attention sdpa, experts looped, elementwise compiled"


def module_of(model: LanguageModel) -> LanguageModule:
    return LanguageModule(model, OptimSettings(lr=1e-3), TrainerSettings(max_steps=1), seed=0, end_of_document=0)


def test_a_checkpoint_keeps_the_kernels_and_resuming_takes_them_over_the_machines(
    tiny_model: Callable[..., LanguageModel],
) -> None:
    saved, checkpoint = module_of(tiny_model()), dict[str, Any]()
    saved.use_kernels(CHOSEN)
    saved.on_save_checkpoint(checkpoint)
    assert checkpoint["kernels"] == asdict(CHOSEN)
    resumed = module_of(tiny_model())
    resumed.use_kernels(Kernels(attention="products"))
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.kernels == CHOSEN
    banks = [module for module in resumed.model.modules() if isinstance(module, ExpertBank)]
    assert {(bank.kernel, bank.library) for bank in banks} == {("looped", "onednn")}


def test_a_checkpoint_from_before_there_was_a_choice_means_the_defaults(
    tiny_model: Callable[..., LanguageModel],
) -> None:
    resumed = module_of(tiny_model())
    resumed.use_kernels(CHOSEN)
    resumed.on_load_checkpoint({})
    assert resumed.kernels == Kernels()


def test_a_run_goes_on_with_the_kernels_it_began_with(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, other = Kernels(attention="sdpa"), Kernels(library="onednn", attention="products")
    monkeypatch.setattr("chronomoe.assembly.kernels_for", lambda config, hardware: begun)
    first = train("trainer.keep_every_steps=4", into="first")
    assert first.checkpoint()["kernels"] == asdict(begun)
    assert str(begun) in "".join(capfd.readouterr())
    kept = first.directory / "checkpoints" / "step_00000004.ckpt"
    monkeypatch.setattr("chronomoe.assembly.kernels_for", lambda config, hardware: other)
    resumed = train("trainer.keep_every_steps=4", f"ckpt_path={kept}", into="second")
    assert resumed.checkpoint()["kernels"] == asdict(begun)
    assert resumed.rows == first.rows[4:]


def test_without_autotune_the_defaults_are_taken_unmeasured(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "measure", refuse)
    assert train("trainer.autotune=false").checkpoint()["kernels"] == asdict(Kernels())
