"""Churn of the probe batch: against sets in plain Python, against the checkpoints of a run, and across a resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import Finished

from chronomoe.data.datamodule import LanguageDataModule
from chronomoe.data.packing import prepare_corpus
from chronomoe.generate import load_model
from chronomoe.model.lm import LanguageModel, Output
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import Stopped
from chronomoe.training import probe_batch
from chronomoe.training.probe_batch import ProbeBatch
from chronomoe.training.telemetry import Telemetry

KEYS = {"val/churn", "val/churn_field", "val/churn_chance"}
Train = Callable[..., Finished]
Build = Callable[..., LanguageModel]


@pytest.fixture
def build(tiny_settings: Callable[..., ModelSettings]) -> Build:
    """build(actuation, seed=…, **router): a tiny model whose gates differ visibly between tokens."""

    def build(actuation: str = "selection", *, seed: int = 0, dense: bool = False, **router: Any) -> LanguageModel:
        torch.manual_seed(seed)
        chosen = RouterSettings(**({"kind": "mixtral", "top_k": 2} | router))
        return LanguageModel(tiny_settings(init_std=0.3, dense=dense), chosen, actuation).eval()

    return build


def set_field(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for buffer in (model.expert_bias_LE, model.log_temperature_LE):
        buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))


def see(probe: ProbeBatch, model: LanguageModel, ids_BS: Tensor) -> tuple[dict[str, float], Output]:
    """What the probe says of the model as it is, and the forward pass it was shown."""
    with torch.no_grad():
        output = model(ids_BS)
    found = probe.see(ids_BS, output.routings, model.expert_bias_LE, model.log_temperature_LE)
    return {name: value.item() for name, value in found.items()}, output


def sets(ids_TK: Tensor) -> list[set[int]]:
    return [set(row) for row in ids_TK.tolist()]


def changed(before: Tensor, now: Tensor) -> float:
    """Share of the choices of one layer that are other ones now."""
    return sum(len(a - b) for a, b in zip(sets(before), sets(now), strict=True)) / before.numel()


def best(logits_TE: Tensor) -> Tensor:
    return logits_TE.argsort(dim=-1, descending=True)[:, :2]


def steered(logits_TE: Tensor, bias_E: Tensor, log_temperature_E: Tensor) -> Tensor:
    """What Mixtral's gate chooses under a field, written as it is in print."""
    mean_T1 = logits_TE.mean(dim=-1, keepdim=True)
    return best((logits_TE - mean_T1) / log_temperature_E.exp() + bias_E)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax", "sigmoid"])
def test_a_router_selects_under_a_field_what_its_forward_pass_selects(build: Build, gate: str, actuation: str) -> None:
    model = build(actuation, gate=gate)
    set_field(model, 1)
    router, x_TD = model.blocks[0].ffn.router, torch.randn(64, 16)
    field = model.expert_bias_LE[0], model.log_temperature_LE[0]
    routing = router(x_TD, *field)
    assert torch.equal(router.select(routing.logits_TE, *field), routing.topk_expert_ids_TK)
    assert changed(best(routing.logits_TE), routing.topk_expert_ids_TK) > 0


def test_churn_equals_sets_in_plain_python(build: Build, draw_ids: Callable[..., Tensor]) -> None:
    ids_BS = draw_ids(4, 16)
    before, now = build(seed=0), build(seed=1)
    set_field(before, 2)
    set_field(now, 3)
    probe = ProbeBatch(before)
    first, output_before = see(probe, before, ids_BS)
    found, output = see(probe, now, ids_BS)
    assert first == {}
    expected = dict.fromkeys(KEYS, 0.0)
    for layer, (was, is_) in enumerate(zip(output_before.routings, output.routings, strict=True)):
        old, new = best(was.logits_TE), best(is_.logits_TE)
        pairs = [len(a & b) for a in sets(old) for b in sets(new)]  # whatever the token
        under_old, under_new = (
            steered(is_.logits_TE, model.expert_bias_LE[layer], model.log_temperature_LE[layer])
            for model in (before, now)
        )
        expected["val/churn"] += changed(old, new) / 2
        expected["val/churn_field"] += changed(under_old, under_new) / 2
        expected["val/churn_chance"] += (1 - sum(pairs) / len(pairs) / 2) / 2
    assert found == pytest.approx(expected)
    assert 0 < min(found.values()) <= max(found.values()) < 1


def test_weights_that_move_alone_and_a_field_that_moves_alone_are_told_apart(
    build: Build, draw_ids: Callable[..., Tensor]
) -> None:
    ids_BS, model = draw_ids(4, 16), build()
    set_field(model, 1)
    probe = ProbeBatch(model)
    see(probe, model, ids_BS)
    still, _ = see(probe, model, ids_BS)
    assert (still["val/churn"], still["val/churn_field"]) == (0.0, 0.0)
    assert still["val/churn_chance"] > 0
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.router.gate.weight.neg_()
    weights, _ = see(probe, model, ids_BS)
    assert weights["val/churn"] > weights["val/churn_field"] == 0.0
    model.expert_bias_LE.zero_()[:, 0] = 100.0  # in place, as the controller writes it
    model.log_temperature_LE.zero_()
    field, output = see(probe, model, ids_BS)
    assert field["val/churn_field"] > 0.1
    _, again = see(probe, model, ids_BS)
    assert torch.equal(output.routings[0].logits_TE, again.routings[0].logits_TE)


def test_other_tokens_begin_anew(build: Build, draw_ids: Callable[..., Tensor]) -> None:
    model = build()
    probe = ProbeBatch(model)
    for ids_BS in (draw_ids(4, 16), draw_ids(4, 16, seed=2), draw_ids(2, 16)):
        assert see(probe, model, ids_BS)[0] == {}
        assert set(see(probe, model, ids_BS)[0]) == KEYS


def test_the_state_is_plain_tensors_that_go_on_where_they_were(build: Build, draw_ids: Callable[..., Tensor]) -> None:
    ids_BS, before, now = draw_ids(4, 16), build(seed=0), build(seed=1)
    probe = ProbeBatch(before)
    assert probe.state_dict() == {}
    see(probe, before, ids_BS)
    state = probe.state_dict()
    assert state["topk_expert_ids_RLTK"].dtype == torch.int16
    assert state["topk_expert_ids_RLTK"].shape == (1, 2, 64, 2)
    other = ProbeBatch(now)
    other.load_state_dict(state)
    assert see(other, now, ids_BS)[0] == see(probe, now, ids_BS)[0]


def test_every_rank_compares_its_own_tokens_and_saves_those_of_all(
    build: Build, draw_ids: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, before, now = [draw_ids(2, 16, seed=seed) for seed in (1, 2)], build(seed=0), build(seed=1)
    alone = []
    for ids_BS in batches:
        probe = ProbeBatch(before)
        see(probe, before, ids_BS)
        alone.append((probe.state_dict(), see(probe, now, ids_BS)[0]))
    saved = {name: torch.cat([state[name] for state, _ in alone]) for name in alone[0][0] if "_R" in name}
    together = alone[0][0] | saved
    tokens_RT = torch.stack([ids_BS.flatten().int() for ids_BS in batches])
    for rank in range(2):
        probe = ProbeBatch(now)
        probe.load_state_dict(together)
        monkeypatch.setattr(probe_batch, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(probe_batch, "gather_ranks", lambda mine: tokens_RT if mine.dim() == 1 else mine[None])
        assert see(probe, now, batches[rank])[0] == alone[rank][1]


@pytest.mark.parametrize(
    "overrides", [{"dense": True}, {"kind": "expert_choice", "capacity_factor": 2.0}], ids=["dense", "expert_choice"]
)
def test_nothing_is_said_where_tokens_choose_no_experts(
    build: Build, draw_ids: Callable[..., Tensor], overrides: dict[str, Any]
) -> None:
    model = build(**overrides)
    probe = ProbeBatch(model)
    assert [see(probe, model, draw_ids(4, 16))[0] for _ in range(2)] == [{}, {}]


def test_a_run_logs_the_churn_between_its_checkpoints_from_the_second_evaluation_on(
    train: Train, configure: Callable[..., Any]
) -> None:
    overrides = (
        *("trainer.eval_every_steps=4", "trainer.keep_every_steps=4", "trainer.max_steps=12"),
        *("optim.lr=3e-2", "data.val_sequences=8", "model.document_mask=false"),
    )
    run, config = train(*overrides), configure(*overrides)
    assert [bool(row["val/churn"]) for row in run.rows if row["val/loss"]] == [False, True, True]
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size)
    batches = iter(LanguageDataModule(config.data, corpus=corpus, seed=0, max_steps=1).val_dataloader())
    first_BS = next(batches)["input_ids"]
    models = [load_model(run.directory, f"step_{step:08d}")[0] for step in (4, 8, 12)]
    with torch.no_grad():
        logits = [[routing.logits_TE for routing in model(first_BS).routings] for model in models]
    for now in (1, 2):
        pairs = zip(logits[now - 1], logits[now], strict=True)
        churn = sum(changed(best(a), best(b)) for a, b in pairs) / 2
        assert run.column("val/churn")[now - 1] == pytest.approx(churn, abs=1e-6)
        biases = models[now - 1].expert_bias_LE, models[now].expert_bias_LE
        field = sum(
            changed(*(best(x_TE + bias_LE[layer]) for bias_LE in biases)) for layer, x_TE in enumerate(logits[now])
        )
        assert run.column("val/churn_field")[now - 1] == pytest.approx(field / 2, abs=1e-6)
    for name in sorted(KEYS):
        assert 0 < max(run.column(name)) < 1


@pytest.mark.parametrize("stop_after", [5, 7])  # at an evaluation, between two
def test_a_resumed_run_logs_the_churn_of_the_uninterrupted_one(
    train: Train, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    overrides = ("trainer.max_steps=12", "trainer.eval_every_steps=5", "optim.lr=3e-2")
    whole = train(*overrides, into="whole")
    original = Telemetry._log_row

    def log_row(self: Telemetry, trainer: Any, module: Any, step: int) -> None:
        original(self, trainer, module, step)
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Telemetry, "_log_row", log_row)
        with pytest.raises(Stopped):
            train(*overrides, into="stopped")
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert len(whole.column("val/churn")) == 2
    assert resumed.rows == whole.rows
    ours, theirs = (run.checkpoint()["probe_batch"] for run in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
