"""Generation with a key-value cache against recomputing the whole sequence for every token.

Axes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model.generation import generate, sample
from chronomoe.model.lm import LanguageModel

MakeModel = Callable[..., LanguageModel]
MakeIds = Callable[..., Tensor]
NEW = 10


@pytest.mark.parametrize("dense", [False, True], ids=["experts", "dense"])
@torch.no_grad()
def test_cached_logits_equal_full_recomputation(tiny_model: MakeModel, draw_ids: MakeIds, dense: bool) -> None:
    model, ids_BS = tiny_model(dense=dense), draw_ids(3, 16)
    caches = model.new_caches(3, 16)
    pieces = [model(part_BS, caches=caches).logits_BSV for part_BS in ids_BS.split([5, 1, 4, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BS).logits_BSV, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_cache_behind_left_padding_equals_the_unpadded_sequence(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = tiny_model(), draw_ids(1, 9)
    padded_BS = torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids_BS), dim=1)
    real_BC = torch.arange(13)[None] >= 4
    caches = model.new_caches(1, 13)
    first = model(padded_BS[:, :8], real_BC=real_BC[:, :8], caches=caches).logits_BSV
    rest = model(padded_BS[:, 8:], real_BC=real_BC, caches=caches).logits_BSV
    torch.testing.assert_close(torch.cat((first, rest), dim=1)[:, 4:], model(ids_BS).logits_BSV, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)], ids=["greedy", "sampled", "top-p"]
)
@torch.no_grad()
def test_generation_equals_full_recomputation(
    tiny_model: MakeModel, draw_ids: MakeIds, temperature: float, top_p: float
) -> None:
    model, prompt_BS = tiny_model(), draw_ids(3, 5)
    options = {"temperature": temperature, "top_p": top_p}
    seeded = torch.Generator().manual_seed(7)
    cached_BS = torch.stack(list(generate(model, prompt_BS, max_new_tokens=NEW, generator=seeded, **options)), dim=1)
    seeded, ids_BS = torch.Generator().manual_seed(7), prompt_BS
    for _ in range(NEW):
        drawn_B = sample(model(ids_BS).logits_BSV[:, -1], temperature, top_p, seeded)
        ids_BS = torch.cat((ids_BS, drawn_B[:, None]), dim=1)
    assert cached_BS.tolist() == ids_BS[:, 5:].tolist()
    assert cached_BS.unique().numel() > 3


def test_generation_past_the_context_raises(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    with pytest.raises(ValueError, match="exceed max_seq_len=32"):
        next(generate(tiny_model(), draw_ids(1, 30), max_new_tokens=3))


def test_more_tokens_than_the_cache_holds_raise(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model()
    caches = model.new_caches(1, 4)
    model(draw_ids(1, 4), caches=caches)
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_ids(1, 1), caches=caches)


def test_generating_counts_nothing_and_changes_no_weight(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(generate(model, draw_ids(1, 4), max_new_tokens=4))
    assert not model.sensor_LEC.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def draw_many(logits: list[float], temperature: float, top_p: float, draws: int = 4000) -> Tensor:
    """Frequencies of each id over many draws."""
    rows = torch.tensor(logits).expand(draws, -1)
    ids = sample(rows, temperature, top_p, torch.Generator().manual_seed(0))
    return ids.bincount(minlength=len(logits)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_at_their_temperature(temperature: float) -> None:
    logits = [0.0, 2.0, -1.0, 1.0]
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    torch.testing.assert_close(draw_many(logits, temperature, 1.0), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, [1]), (0.64, [1]), (0.66, [1, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float, kept: list[int]) -> None:
    # softmax of these is 0.087, 0.643, 0.032, 0.237
    frequencies = draw_many([0.0, 2.0, -1.0, 1.0], 1.0, top_p)
    assert frequencies.nonzero().flatten().tolist() == kept
