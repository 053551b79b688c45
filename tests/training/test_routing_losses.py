"""What routing adds to the loss: what is computed, what it moves, and that a scope means the tokens it names.

Axes: B batch, S sequence, L MoE layers, E experts.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_runs import Finished, differences

from chronomoe.model.lm import LanguageModel, Output
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.training import routing_losses
from chronomoe.training.module import LanguageModule
from chronomoe.training.routing_losses import RoutingLosses

Train = Callable[..., Finished]
MakeModel = Callable[..., LanguageModel]
ON = {"load_balancing_loss": {"load_balancing_weight": 0.5}, "router_z_loss": {"z_loss_weight": 0.25}}
BALANCED = ("router.load_balancing_weight=0.5", "trainer.log_every_steps=1")


@pytest.fixture
def make_model(tiny_settings: Callable[..., ModelSettings]) -> MakeModel:
    """make_model(**router settings): a seeded tiny model in training mode, fp64 outside its gate."""

    def make(**router: object) -> LanguageModel:
        torch.manual_seed(0)
        return LanguageModel(tiny_settings(init_std=0.3), RouterSettings(kind="mixtral", **router)).double().train()  # type: ignore[arg-type]

    return make


def gradients(model: LanguageModel, parts: list[Tensor], *, with_text: bool = False) -> dict[str, Tensor]:
    """Of the mean over micro-batches of the weighted routing losses (and, if asked, some cross-entropy)."""
    losses = RoutingLosses(model, model.router_settings)
    alone = len(parts) == 1
    model.zero_grad()
    if losses.looks_ahead and not alone:
        losses.look_ahead(partial(model, ids_BS) for ids_BS in parts)
    for ids_BS in parts:
        output = model(ids_BS)
        total = sum(weight * value for weight, value in losses(output, alone=alone).values())
        if with_text:
            total = total + cross_entropy(output.logits_BSV.flatten(0, 1), ids_BS.flatten())
        (total / len(parts)).backward()  # type: ignore[union-attr]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ON)
def test_what_is_switched_off_is_not_computed(
    make_model: MakeModel, draw_ids: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    other = next(key for key in ON if key != name)
    monkeypatch.setattr(routing_losses, other, lambda *_, **__: pytest.fail(f"{other} was computed"))
    model = make_model(**ON[name])
    found = RoutingLosses(model, model.router_settings)(model(draw_ids(4, 12)), alone=True)
    assert found.keys() == {name}
    assert found[name][0] == next(iter(ON[name].values()))


def test_a_dense_model_has_no_routing_losses(
    tiny_settings: Callable[..., ModelSettings], draw_ids: Callable[..., Tensor]
) -> None:
    router = RouterSettings(kind="mixtral", load_balancing_weight=1.0, z_loss_weight=1.0)
    model = LanguageModel(tiny_settings(dense=True), router)
    assert RoutingLosses(model, router)(model(draw_ids(2, 8)), alone=True) == {}


@pytest.mark.parametrize("enabled", ON.values(), ids=ON.keys())
def test_an_enabled_loss_moves_the_gates_and_never_the_field(
    make_model: MakeModel, draw_ids: Callable[..., Tensor], enabled: dict[str, float]
) -> None:
    ids_BS = draw_ids(4, 12)
    plain = gradients(make_model(), [ids_BS], with_text=True)
    model = make_model(**enabled)
    moved = gradients(model, [ids_BS], with_text=True)
    for layer in range(2):
        name = f"blocks.{layer}.ffn.router.gate.weight"
        assert (moved[name] - plain[name]).norm() > 1e-3 * plain[name].norm()
    assert not any(buffer.requires_grad or buffer.grad is not None for buffer in model.buffers())


def test_the_global_scope_over_micro_batches_is_one_batch_of_the_whole(
    make_model: MakeModel, draw_ids: Callable[..., Tensor]
) -> None:
    ids_BS, weight = draw_ids(8, 12), {"load_balancing_weight": 0.5}
    whole = gradients(make_model(**weight), [ids_BS])
    found = {
        scope: gradients(make_model(**weight, load_balancing_scope=scope), list(ids_BS.chunk(4)))
        for scope in ("global_batch", "micro_batch")
    }
    for name, expected in whole.items():
        torch.testing.assert_close(found["global_batch"][name], expected, rtol=1e-4, atol=1e-7)
    gate = "blocks.1.ffn.router.gate.weight"
    assert (found["micro_batch"][gate] - whole[gate]).norm() > 0.05 * whole[gate].norm()


def test_looking_ahead_leaves_the_sensor_alone_and_counting_on(
    make_model: MakeModel, draw_ids: Callable[..., Tensor]
) -> None:
    model = make_model(load_balancing_weight=0.5, load_balancing_scope="global_batch")
    losses = RoutingLosses(model, model.router_settings)
    losses.look_ahead([partial(model, draw_ids(4, 12))])
    assert not model.sensor_LEC.any()
    with pytest.raises(KeyError):
        losses.look_ahead([{}.popitem])  # type: ignore[list-item]
    model(draw_ids(4, 12))
    assert model.sensor_LEC[..., 0].sum() == 2 * 2 * 48  # also after a failure


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_looking_ahead_changes_nothing_of_the_run(train: Train, precision: str) -> None:
    """A weight too small to move a float leaves only the looking ahead: data order, counts and weights stay equal."""
    overrides = (f"trainer.precision={precision}", "trainer.accumulate_grad_batches=2", "router.jitter=0.2")
    plain = train(*overrides, into="plain")
    ahead = train(
        *overrides, "router.load_balancing_weight=1e-35", "router.load_balancing_scope=global_batch", into="ahead"
    )
    assert differences(ahead.checkpoint()["state_dict"], plain.checkpoint()["state_dict"]) == []
    np.testing.assert_array_equal(ahead.routing["tokens_per_expert"], plain.routing["tokens_per_expert"])


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_what_is_seen_ahead_is_what_training_then_routes(
    train: Train, monkeypatch: pytest.MonkeyPatch, jitter: float
) -> None:
    seen, look_ahead = [], RoutingLosses.look_ahead

    def spy(self: RoutingLosses, forwards: Any) -> None:
        look_ahead(self, forwards)
        assert self._step_counts_LE is not None
        seen.append(self._step_counts_LE.numpy())

    monkeypatch.setattr(RoutingLosses, "look_ahead", spy)
    run = train(
        *BALANCED, "router.load_balancing_scope=global_batch", "trainer.accumulate_grad_batches=2",
        f"router.jitter={jitter}",
    )  # fmt: skip
    np.testing.assert_array_equal(np.stack(seen), run.routing["tokens_per_expert"])


def test_every_micro_batch_of_every_step_draws_its_own_noise(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, forward = [], LanguageModule.forward

    def spy(self: LanguageModule, input_ids_BS: Tensor) -> Output:
        if self.training:
            seeds.append(torch.initial_seed())
        return forward(self, input_ids_BS)

    monkeypatch.setattr(LanguageModule, "forward", spy)
    for seed in (0, 1):
        train(f"seed={seed}", "trainer.accumulate_grad_batches=2", into=f"seed{seed}")
    assert len(seeds) == len(set(seeds)) == 2 * 8 * 2


def test_the_global_scope_trains_alike_however_the_step_is_split_and_the_other_does_not(train: Train) -> None:
    found = {}
    for scope in ("global_batch", "micro_batch"):
        losses = [
            train(
                *BALANCED, f"router.load_balancing_scope={scope}", f"trainer.accumulate_grad_batches={parts}",
                into=f"{scope}{parts}",
            ).column("train/load_balancing_loss")
            for parts in (1, 2)
        ]  # fmt: skip
        assert len(losses[0]) == 8
        found[scope] = np.abs(np.subtract(*losses)).max()
    assert found["global_batch"] < 1e-4
    assert found["micro_batch"] > 1e-3


def test_losses_are_logged_before_their_weights(train: Train) -> None:
    run = train(*BALANCED, "router.z_loss_weight=1e-3")
    assert 1.0 < run.column("train/load_balancing_loss")[0] < 2.0
    assert run.column("train/router_z_loss")[0] == pytest.approx(np.log(4) ** 2, rel=0.2)
    assert "train/load_balancing_loss" not in train(into="plain").rows[0]


@pytest.mark.parametrize(("jitter", "scope"), [(0.0, "micro_batch"), (0.3, "global_batch")])
def test_a_resumed_run_draws_and_balances_what_the_whole_one_does(train: Train, jitter: float, scope: str) -> None:
    overrides = (
        *BALANCED, f"router.load_balancing_scope={scope}", "trainer.accumulate_grad_batches=2",
        f"router.jitter={jitter}", "trainer.keep_every_steps=3",
    )  # fmt: skip
    whole = train(*overrides, into="whole")
    middle = whole.directory / "checkpoints" / "step_00000003.ckpt"
    resumed = train(*overrides, f"ckpt_path={middle}", into="resumed")
    assert differences(resumed.checkpoint()["state_dict"], whole.checkpoint()["state_dict"]) == []
    assert resumed.rows == [row for row in whole.rows if int(row["step"]) > 3]


def gradients_of_rank(rank: int, store: Path, model: LanguageModel, parts: list[Tensor], results: Queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = gradients(model, list(parts[rank].chunk(2)))
    for gradient in found.values():
        dist.all_reduce(gradient)
    results.put({name: (gradient / 2).tolist() for name, gradient in found.items()} if rank == 0 else None)
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_with_a_global_scope_are_one_process(
    make_model: MakeModel, draw_ids: Callable[..., Tensor], tmp_path: Path
) -> None:
    """Two ranks of two micro-batches each, gradients averaged as DDP does, against one batch."""
    model, ids_BS = make_model(load_balancing_weight=0.5, load_balancing_scope="global_batch"), draw_ids(8, 12)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(
            target=gradients_of_rank, args=(rank, tmp_path / "store", model, list(ids_BS.chunk(2)), results)
        )
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    found = next(result for result in (results.get(timeout=60), results.get(timeout=60)) if result is not None)
    for rank in ranks:
        rank.join(timeout=60)
    for name, expected in gradients(model, [ids_BS]).items():
        torch.testing.assert_close(torch.tensor(found[name], dtype=torch.float64), expected, rtol=1e-4, atol=1e-7)
