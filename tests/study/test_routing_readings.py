"""A model's readings: the metrics of what it really did, whatever its router, in JSON's numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.metrics.load import max_vio
from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import RouterSettings
from chronomoe.study.routing_readings import AVERAGED, Effort, LabelledTokens, as_json, read_model, run_model

EFFORT = Effort(permutations=199, resamples=1000, seed=0)


@pytest.fixture
def batches(draw_ids: Callable[..., Tensor]) -> list[dict[str, Tensor]]:
    """Three batches of four sequences of 16 random tokens."""
    ids = [draw_ids(4, 17, seed) for seed in range(3)]
    return [{"input_ids": ids_BS[:, :-1], "targets": ids_BS[:, 1:]} for ids_BS in ids]


@pytest.fixture
def tokens(batches: list[dict[str, Tensor]]) -> LabelledTokens:
    """Each sequence a document, in two domains by turns."""
    token_ids_T = torch.cat([batch["input_ids"].flatten() for batch in batches])
    document_T = torch.arange(12).repeat_interleave(16)
    return LabelledTokens(token_ids_T, document_T, document_T % 2, ["even", "odd"])


def test_batches_are_read_as_all_their_tokens_at_once(
    tiny_model: Callable[..., LanguageModel], batches: list[dict[str, Tensor]], tokens: LabelledTokens
) -> None:
    model = tiny_model()
    whole = [{name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}]
    first, second = (run_model(model, given, 0, "topk_softmax") for given in (batches, whole))
    assert first.loss == pytest.approx(second.loss, rel=1e-5)
    assert torch.equal(first.topk_expert_ids_LTK, second.topk_expert_ids_LTK)
    with torch.no_grad():
        output = model(whole[0]["input_ids"])
    assert first.loss == pytest.approx(
        torch.nn.functional.cross_entropy(output.logits_BSV.flatten(0, 1), whole[0]["targets"].flatten()).item(),
        rel=1e-5,
    )
    read = read_model(first, tokens, EFFORT)
    for layer, routing in enumerate(output.routings):
        vio = max_vio(routing.tokens_per_expert_E).item()
        assert read["layers"][layer]["max_vio"] == pytest.approx(vio, rel=1e-5)


def test_a_masked_model_is_run_with_its_documents_apart(
    tiny_model: Callable[..., LanguageModel], batches: list[dict[str, Tensor]]
) -> None:
    end = int(batches[0]["input_ids"][0, 8])
    plain, masked = (run_model(tiny_model(document_mask=mask), batches, end, "topk_softmax") for mask in (False, True))
    assert plain.loss != masked.loss


def test_under_expert_choice_only_what_was_taken_counts(
    tiny_settings: Callable[..., Any], batches: list[dict[str, Tensor]], tokens: LabelledTokens
) -> None:
    torch.manual_seed(0)
    router = RouterSettings(kind="expert_choice", capacity_factor=1.0, causal=False)
    model = LanguageModel(tiny_settings(init_std=0.3), router).eval()
    forward = run_model(model, batches, 0, "topk_softmax")
    assert forward.tally is not None
    assert forward.assigned_LTK is not None
    assert forward.tally.counts_LE.tolist() == [[48] * 4] * 2
    assert forward.assigned_LTK.sum() == 2 * 4 * 48
    read = read_model(forward, tokens, EFFORT)
    assert read["mean"]["max_vio"] == 0
    assert read["mean"]["dropped_frac"] == 0
    assert read["mean"]["lift_lowest"] < 1


def test_a_dense_model_has_a_loss_alone(
    tiny_model: Callable[..., LanguageModel], batches: list[dict[str, Tensor]], tokens: LabelledTokens
) -> None:
    read = read_model(run_model(tiny_model(dense=True), batches, 0, "topk_softmax"), tokens, EFFORT)
    assert set(read) == {"loss", "perplexity"}


@pytest.mark.parametrize("top_k", [1, 2])
def test_everything_read_is_json_and_undefined_is_null(
    tiny_model: Callable[..., LanguageModel], batches: list[dict[str, Tensor]], tokens: LabelledTokens, top_k: int
) -> None:
    read = read_model(run_model(tiny_model(top_k=top_k), batches, 0, "topk_softmax"), tokens, EFFORT)
    assert json.loads(json.dumps(read, allow_nan=False)) == read
    assert set(read["mean"]) == set(AVERAGED)
    assert (read["mean"]["lift_highest"] is None) == (top_k == 1)


def test_what_is_not_finite_becomes_none_and_the_rest_stays() -> None:
    assert as_json(torch.tensor([[1.5, math.nan], [math.inf, 2.0]])) == [[1.5, None], [None, 2.0]]
