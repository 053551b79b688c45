"""A hybrid model reads a text in any pieces as it reads it whole: section 2.4 of the reference, S1 to S5.

Compared are the hidden states behind the last norm. Pieces of up to 16 tokens run the recurrence and longer ones run
chunks, so every split below also compares those two.

Axes: B batch, S sequence, D dim.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hybrid_models import EXACT, SCHEDULES, SINGLE, clear_tokens, draw_ids, hybrid_model, worst
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.lm import LanguageModel
from chronomoe.model.state import StreamState

LENGTH = 90
SPLITS = {
    "pieces": [1, 3, 20, 1, 32, 17, 16],
    "token by token": [1] * LENGTH,
    "prompt and decoding": [60] + [1] * (LENGTH - 60),
    "whole": [LENGTH],
}
by_positions = pytest.mark.parametrize("positions", ["none", "rope"])
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def read(model: LanguageModel, ids_BS: Tensor, sizes: list[int]) -> tuple[Tensor, StreamState]:
    """Hidden states [B, S, D] of a text given in pieces, and the state behind it."""
    state = model.new_state(len(ids_BS))
    with torch.no_grad():
        pieces = [model(piece_BS, state=state).hidden_BSD for piece_BS in ids_BS.split(sizes, dim=1)]
    return torch.cat(pieces, dim=1), state


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS.keys())
@by_schedule
def test_any_split_is_the_whole_in_double_precision(schedule: dict, sizes: list[int]) -> None:
    model, ids_BS = hybrid_model(**schedule), draw_ids(2, LENGTH)
    with torch.no_grad():
        whole = model(ids_BS)
    assert worst(read(model, ids_BS, sizes)[0], whole.hidden_BSD) < EXACT


@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS.keys())
@by_schedule
def test_any_split_is_the_whole_in_single_precision_where_routing_is_clear(
    schedule: dict, sizes: list[int], record_property: Callable[[str, object], None]
) -> None:
    model, ids_BS = hybrid_model(dtype=torch.float32, **schedule), draw_ids(2, LENGTH)
    with torch.no_grad():
        whole = model(ids_BS)
    clear_BS = clear_tokens(whole.routings, 2)
    found_BSD = read(model, ids_BS, sizes)[0]
    flips = int(((found_BSD - whole.hidden_BSD).abs().amax(-1) > 1e-3)[~clear_BS].sum())
    record_property("flips", flips)
    assert clear_BS.float().mean() > 0.3
    assert worst(found_BSD[clear_BS], whole.hidden_BSD[clear_BS]) < SINGLE


@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=4, unique=True), window=st.sampled_from([None, 1, 2, 7, 40]))
def test_any_split_is_the_whole_behind_a_window(cuts: list[int], window: int | None) -> None:
    model, ids_BS = hybrid_model(schedule="RTR", attention_window=window), draw_ids(1, LENGTH)
    sizes = [end - start for start, end in pairwise([0, *sorted(cuts), LENGTH])]
    with torch.no_grad():
        whole_BSD = model(ids_BS).hidden_BSD
    assert worst(read(model, ids_BS, sizes)[0], whole_BSD) < EXACT


OTHERS = {
    "no positions": {"positions": "none"},
    "wide heads, tied": {"dim": 128, "num_heads": 2, "tie_embeddings": True},
    "shared experts": {"num_shared_experts": 1},
    "dense": {"dense": True},
    "RMSNorm and swiglu": {"norm": "rms", "activation": "swiglu"},
    "nothing attends": {"schedule": "RRR"},
}
ROUTERS = {
    "switch": {"kind": "switch", "gate": "softmax", "top_k": 1},
    "sigmoid": {"kind": "mixtral", "gate": "sigmoid"},
    "capacity and jitter": {"kind": "mixtral", "capacity_factor": 0.5, "jitter": 0.1},
    "expert choice": {"kind": "expert_choice", "gate": "softmax", "capacity_factor": 2.0},
}


@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS.keys())
def test_any_split_is_the_whole_for_other_models(overrides: dict) -> None:
    model, ids_BS = hybrid_model(**overrides), draw_ids(2, LENGTH)
    with torch.no_grad():
        whole_BSD = model(ids_BS).hidden_BSD
    assert worst(read(model, ids_BS, SPLITS["pieces"])[0], whole_BSD) < EXACT


@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())
def test_any_split_is_the_whole_for_other_routers_and_a_field(router: dict) -> None:
    model, ids_BS = hybrid_model(router=router), draw_ids(2, LENGTH)
    if router["kind"] != "expert_choice":
        model.expert_bias_LE.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
        model.log_temperature_LE.normal_(0, 0.3, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        whole_BSD = model(ids_BS).hidden_BSD
    assert worst(read(model, ids_BS, SPLITS["pieces"])[0], whole_BSD) < EXACT


def test_the_window_acts() -> None:
    ids_BS = draw_ids(1, 40)
    wide, narrow = (hybrid_model(schedule="RRT", attention_window=window) for window in (None, 5))
    with torch.no_grad():
        wide_BSD, narrow_BSD = wide(ids_BS).hidden_BSD, narrow(ids_BS).hidden_BSD
    assert worst(narrow_BSD[:, :5], wide_BSD[:, :5]) < EXACT
    assert (narrow_BSD - wide_BSD)[:, 5:].abs().amax(-1).min() > 1e-6


@by_positions
@by_schedule
def test_packed_documents_are_separate_documents(schedule: dict, positions: str) -> None:
    model, ids_BS = hybrid_model(positions=positions, **schedule), draw_ids(2, 70)
    borders = [[0, 9, 10, 42, 70], [0, 33, 70]]
    document_BS = torch.stack([
        torch.cat([torch.full((end - start,), number) for number, (start, end) in enumerate(pairwise(of_row))])
        for of_row in borders
    ])  # fmt: skip
    with torch.no_grad():
        packed_BSD = model(ids_BS, document_BS=document_BS).hidden_BSD
        for row, of_row in enumerate(borders):
            alone = [model(ids_BS[row : row + 1, start:end]).hidden_BSD[0] for start, end in pairwise(of_row)]
            assert worst(packed_BSD[row], torch.cat(alone)) < EXACT


@pytest.mark.parametrize("before", [5, 40], ids=["short", "long"])
@by_positions
@by_schedule
def test_padding_changes_neither_outputs_nor_states(schedule: dict, positions: str, before: int) -> None:
    """In front of a text and behind it."""
    model, ids_BS, behind = hybrid_model(positions=positions, **schedule), draw_ids(1, 30), 7
    padded_BS = torch.nn.functional.pad(ids_BS, (before, behind), value=3)
    real_BC = torch.zeros(padded_BS.shape, dtype=torch.bool)
    real_BC[:, before : before + 30] = True
    whole, padded = model.new_state(1), model.new_state(1)
    with torch.no_grad():
        expected = model(ids_BS, state=whole)
        found_BSD = model(padded_BS, real_BC=real_BC).hidden_BSD[:, before : before + 30]
        model(padded_BS, real_BC=real_BC, state=padded)
    assert worst(found_BSD, expected.hidden_BSD) < EXACT
    for one, other in zip(padded.layers, whole.layers, strict=True):
        tensors = one.tensors()
        for name, tensor in other.tensors().items():
            mine = tensors[name]
            if name.endswith("BGCA"):
                mine = mine[:, :, before : before + 30]
            if name != "keys_BGCA" or positions == "none":  # else turned by a position that differs by `before`
                assert worst(mine, tensor) < EXACT, name


@by_positions
def test_a_padded_batch_goes_on_as_each_of_its_texts(positions: str) -> None:
    model, ids_BS = hybrid_model(positions=positions, **SCHEDULES["hybrid"]), draw_ids(2, 30)
    length, lengths = 20, [20, 13]
    prompt_BS, real_BC = torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, 30, dtype=torch.bool)
    for row, size in enumerate(lengths):
        prompt_BS[row, length - size :], real_BC[row, length - size :] = ids_BS[row, :size], True
    state = model.new_state(2)
    with torch.no_grad():
        model(prompt_BS, real_BC=real_BC[:, :length], state=state)
        further_BSD = model(ids_BS[:, 20:], real_BC=real_BC, state=state).hidden_BSD
        for row, size in enumerate(lengths):
            text_BS = torch.cat((ids_BS[row, :size], ids_BS[row, 20:]))[None]
            assert worst(further_BSD[row], model(text_BS).hidden_BSD[0, size:]) < EXACT


@by_schedule
def test_a_row_alone_is_the_row_in_a_batch(schedule: dict) -> None:
    model, ids_BS = hybrid_model(**schedule), draw_ids(3, 40)
    with torch.no_grad():
        together_BSD = model(ids_BS).hidden_BSD
        for row in range(3):
            assert worst(model(ids_BS[row : row + 1]).hidden_BSD[0], together_BSD[row]) < EXACT


@by_schedule
def test_what_other_rows_hold_leaves_a_row_alone(schedule: dict) -> None:
    model, ids_BS = hybrid_model(**schedule), draw_ids(3, 40)
    other_BS = torch.cat((ids_BS[:1], draw_ids(2, 40, seed=9)))
    with torch.no_grad():
        assert worst(model(other_BS).hidden_BSD[0], model(ids_BS).hidden_BSD[0]) < EXACT
