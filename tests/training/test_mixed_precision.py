"""Training under bf16-mixed: where gradients stay in bf16, where weights are cast, and how near it stays to fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from training_runs import Finished

from chronomoe.model.experts import ExpertBank
from chronomoe.model.products import Linear, working_copy_of
from chronomoe.training.module import LanguageModule
from chronomoe.training.settings import OptimSettings, TrainerSettings

Train = Callable[..., Finished]
BF16 = "trainer.precision=bf16-mixed"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[torch.dtype]]:
    """dtypes of the gradients that reach the clipping, of matrices that multiply (`products`) and of the others."""
    found: dict[str, set[torch.dtype]] = {"products": set(), "others": set()}
    original = LanguageModule.configure_gradient_clipping

    def clipping(self: LanguageModule, *args: Any, **kwargs: Any) -> None:
        multiplying = {
            id(weight)
            for module in self.model.modules()
            if isinstance(module, Linear | ExpertBank)
            for weight in module.parameters(recurse=False)
        }
        for weight in self.model.parameters():
            assert weight.grad is not None
            found["products" if id(weight) in multiplying else "others"].add(weight.grad.dtype)
            assert (working_copy_of(weight) is not None) == (
                self.trainer.precision == "bf16-mixed" and id(weight) in multiplying
            )
        original(self, *args, **kwargs)

    monkeypatch.setattr(LanguageModule, "configure_gradient_clipping", clipping)
    return found


@pytest.mark.parametrize(
    ("overrides", "products"),
    [
        ((BF16,), torch.bfloat16),
        ((BF16, "trainer.accumulate_grad_batches=2"), torch.float32),
        (("trainer.precision=32-true",), torch.float32),
    ],
)
def test_gradients_are_bf16_only_where_none_are_summed(
    train: Train, seen: dict[str, set[torch.dtype]], overrides: tuple[str, ...], products: torch.dtype
) -> None:
    finished = train(*overrides, "trainer.max_steps=2")
    assert seen == {"products": {products}, "others": {torch.float32}}
    assert all(np.isfinite(finished.column("train/grad_norm")))


@pytest.mark.parametrize(
    ("strategy", "accumulate", "half"),
    [("single", 1, True), ("single", 2, False), ("ddp", 1, False), ("fsdp", 1, None)],
)
def test_processes_and_micro_batches_sum_gradients_in_fp32_and_shards_keep_no_copies(
    tiny_model: Callable[..., Any], strategy: str, accumulate: int, half: bool | None
) -> None:
    model = tiny_model()
    settings = TrainerSettings(max_steps=1, strategy=strategy, accumulate_grad_batches=accumulate)
    module = LanguageModule(model, OptimSettings(lr=1e-3), settings, seed=0, end_of_document=0)
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module.trainer = L.Trainer(accelerator="cpu", devices=1, precision="bf16-mixed", **quiet)
    module.keep_working_copies()
    matrices = [weight for block in model.blocks for weight in block.parameters() if weight.dim() > 1]
    copied = [weight for weight in matrices if working_copy_of(weight) is not None]
    assert bool(copied) == (half is not None)
    halved = {weight.grad_dtype == torch.bfloat16 for weight in copied}
    assert halved == (set() if half is None else {half})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_thirty_steps_end_near_those_in_fp32(train: Train, accumulate: int) -> None:
    common = (
        "trainer.max_steps=30", "trainer.eval_every_steps=10", f"trainer.accumulate_grad_batches={accumulate}",
    )  # fmt: skip
    full = train(*common, "trainer.precision=32-true", into="full")
    mixed = train(*common, BF16, into="mixed")
    a, b = np.array(full.column("train/loss")), np.array(mixed.column("train/loss"))
    assert len(a) == len(b) == 30
    assert a[-1] < a[0] - 0.3  # it learns
    assert not np.array_equal(a, b)  # another precision
    np.testing.assert_allclose(b, a, atol=0.02)
    np.testing.assert_allclose(mixed.column("val/loss"), full.column("val/loss"), atol=0.02)
    assert mixed.column("train/grad_norm")[0] == pytest.approx(full.column("train/grad_norm")[0], rel=0.02)


def test_gradients_summed_in_fp32_are_near_those_of_one_batch_in_bf16(train: Train) -> None:
    """Two ways to the same step: bf16 gradients of one batch, and the fp32 sum of its halves'."""
    whole = train(BF16, into="whole")
    halves = train(BF16, "trainer.accumulate_grad_batches=2", into="halves")
    np.testing.assert_allclose(halves.column("train/loss"), whole.column("train/loss"), atol=0.02)
    np.testing.assert_allclose(halves.column("train/grad_norm")[0], whole.column("train/grad_norm")[0], rtol=0.02)
