"""Kernels are chosen by measurement once, remembered, applied everywhere, and kept with a checkpoint."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chronomoe.model.attention import Attention
from chronomoe.model.experts import ExpertBank
from chronomoe.model.lm import LanguageModel
from chronomoe.model.products import Linear
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.training import allocator, autotune
from chronomoe.training.autotune import MARGIN, Kernels, Workload, choose_kernels, fastest, use

MODEL = ModelSettings(
    num_layers=1, num_experts=4, dim=16, hidden_dim=24, num_heads=2, num_kv_heads=1, vocab_size=40, max_seq_len=64
)
ROUTER = RouterSettings(kind="mixtral", top_k=2)
WORK = Workload(batch=2, length=8, dtype=torch.float32, device=torch.device("cpu"))
OTHER = Kernels(library="onednn", attention="sdpa")


def no_measuring(*_: object) -> Kernels:
    raise AssertionError("measured again")


def test_a_choice_is_made_among_the_candidates_and_leaves_randomness_as_it_was() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    found = autotune.measure(MODEL, ROUTER, WORK)
    assert found.library in ("torch", "onednn")
    assert found.attention in ("products", "sdpa")
    assert (found.experts, found.elementwise) == ("auto", "eager")  # chosen on GPUs
    assert torch.equal(torch.rand(2), expected)


def test_a_remembered_choice_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "measure", lambda *_: OTHER)
    assert choose_kernels(MODEL, ROUTER, WORK, tmp_path / "cache") == OTHER
    monkeypatch.setattr(autotune, "measure", no_measuring)
    assert choose_kernels(MODEL, ROUTER, WORK, tmp_path / "cache") == OTHER
    longer = Workload(batch=2, length=16, dtype=torch.float32, device=WORK.device)
    with pytest.raises(AssertionError, match="measured again"):
        choose_kernels(MODEL, ROUTER, longer, tmp_path / "cache")


@pytest.mark.parametrize(
    "content", ["{broken", "[1]", '{"a": {"library": "torch"}}'], ids=["broken", "list", "other version"]
)
def test_an_unreadable_memory_is_measured_anew(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.json").write_text(content)
    monkeypatch.setattr(autotune, "measure", lambda *_: OTHER)
    assert choose_kernels(MODEL, ROUTER, WORK, tmp_path) == OTHER
    assert [Kernels(**choice) for choice in json.loads((tmp_path / "kernels.json").read_text()).values()] == [OTHER]


def test_where_nothing_can_be_written_the_choice_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(autotune, "measure", lambda *_: OTHER)
    assert choose_kernels(MODEL, ROUTER, WORK, tmp_path / "file" / "cache") == OTHER


class Timed(nn.Module):
    """Moves a clock of its own instead of taking time."""

    kernel = "slow"

    def __init__(self, seconds: dict[str, float]) -> None:
        super().__init__()
        self.seconds, self.now = seconds, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.now += self.seconds[self.kernel]
        return x * 2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({"a": 1.0, "b": 1.0}, "a"), ({"a": 1.0, "b": 0.99 / MARGIN}, "b"), ({"a": 1.0, "b": 1.01 / MARGIN}, "a")],
    ids=["a tie keeps the default", "faster by the margin", "faster by less"],
)
def test_the_default_stays_unless_another_is_faster_by_the_margin(
    seconds: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Timed(seconds)
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: module.now)
    assert fastest(module, "kernel", ("a", "b"), torch.zeros(2)) == expected


def test_a_choice_reaches_every_module() -> None:
    model = LanguageModel(MODEL, ROUTER)
    use(model, Kernels(library="onednn", attention="sdpa", experts="looped", elementwise="compiled"))
    seen = set()
    for module in model.modules():
        if isinstance(module, Linear | ExpertBank):
            assert module.library == "onednn"
        if isinstance(module, ExpertBank):
            assert (module.kernel, module.elementwise) == ("looped", "compiled")
        if isinstance(module, Attention):
            assert (module.kernel, module.elementwise) == ("sdpa", "compiled")
        seen.add(type(module))
    assert {Linear, ExpertBank, Attention} <= seen


CHOICES = list(itertools.product(("torch", "onednn"), ("products", "sdpa"), ("auto", "looped")))


@pytest.mark.parametrize(("library", "attention", "experts"), CHOICES)
def test_every_choice_computes_the_same(library: str, attention: str, experts: str) -> None:
    torch.manual_seed(0)
    model, ids_BS = LanguageModel(MODEL, ROUTER), torch.randint(40, (2, 9))
    found = []
    for kernels in (Kernels(), Kernels(library=library, attention=attention, experts=experts)):
        use(model, kernels)
        loss = model(ids_BS[:, :-1]).loss(ids_BS[:, 1:])
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for mine, default in zip(*found, strict=True):
        torch.testing.assert_close(mine, default, rtol=1e-4, atol=1e-6)


def test_freed_memory_is_left_alone_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_freed_memory() is False
