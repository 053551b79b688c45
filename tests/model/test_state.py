"""What a model remembers: copied, cut, saved and read back, it goes on as if nothing had happened (P20, P21).

Axes: B batch, S sequence, D dim.
"""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hybrid_models import EXACT, SCHEDULES, draw_ids, hybrid_model, worst
from torch import Tensor

from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel
from chronomoe.model.state import StreamState
from chronomoe.settings import InputError

MODELS: dict[str, dict[str, Any]] = {
    **SCHEDULES,
    "window": {"schedule": "RTR", "attention_window": 8},
    "transformer": {"schedule": "transformer", "num_layers": 2},
    "recurrent": {"schedule": "RR", "num_layers": 2},
}
by_model = pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())


def read(model: LanguageModel, ids_BS: Tensor, state: StreamState | None = None) -> StreamState:
    state = model.new_state(len(ids_BS), 40) if state is None else state
    with torch.no_grad():
        model(ids_BS, state=state)
    return state


def go_on(model: LanguageModel, state: StreamState, ids_BS: Tensor) -> Tensor:
    """Hidden states of a further piece, and of one more token."""
    with torch.no_grad():
        pieces = [model(piece_BS, state=state).hidden_BSD for piece_BS in ids_BS.split([ids_BS.shape[1] - 1, 1], dim=1)]
    return torch.cat(pieces, dim=1)


def contents(state: StreamState) -> list[Tensor]:
    return [tensor.clone() for layer in state.layers for tensor in layer.tensors().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def by_disk(state: StreamState, model: LanguageModel) -> StreamState:
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    fresh = model.new_state(1)
    fresh.load_dict(torch.load(file, weights_only=True))
    return fresh


COPIES = {
    "clone": lambda state, model: state.clone(),
    "detach": lambda state, model: state.detach(),
    "all rows": lambda state, model: state.select(torch.tensor([0, 1])),
    "to": lambda state, model: state.to("cpu"),
    "disk": by_disk,
}
by_copy = pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())


@by_copy
@by_model
def test_a_copy_goes_on_bit_for_bit_and_leaves_the_original_alone(overrides: dict, copy: Any) -> None:
    model, ids_BS, further_BS = hybrid_model(dtype=torch.float32, **overrides), draw_ids(2, 20), draw_ids(2, 9, seed=2)
    state = read(model, ids_BS)
    held = contents(state)
    twin = copy(state, model)
    assert twin.position == state.position == 20
    assert same(contents(twin), held)
    found_BSD = go_on(model, twin, further_BS)
    assert same(contents(state), held)
    assert state.position == 20
    assert twin.position == 29
    assert torch.equal(found_BSD, go_on(model, state, further_BS))


@by_copy
@by_model
def test_a_copy_shares_no_storage(overrides: dict, copy: Any) -> None:
    model = hybrid_model(dtype=torch.float32, **overrides)
    state = read(model, draw_ids(2, 20))
    before, after = (
        {t.untyped_storage().data_ptr() for layer in of.layers for t in layer.tensors().values()}
        for of in (state, copy(state, model))
    )
    assert not before & after


@by_model
def test_rows_are_selected_and_reordered(overrides: dict) -> None:
    model, ids_BS, further_BS = hybrid_model(**overrides), draw_ids(3, 20), draw_ids(4, 6, seed=2)
    rows = torch.tensor([2, 0, 2, 1])
    found_BSD = go_on(model, read(model, ids_BS).select(rows), further_BS)
    expected_BSD = go_on(model, read(model, ids_BS[rows]), further_BS)
    assert worst(found_BSD, expected_BSD) < EXACT


@by_model
def test_bytes_are_the_closed_form(overrides: dict) -> None:
    """Section 2.5: 256 d + 2 d x bytes of a recurrent block, 2 G A t x bytes of an attending one, a window at most."""
    model = hybrid_model(dtype=torch.float32, **overrides)
    settings = model.settings
    for length in (1, 5, 30):
        state = read(model, draw_ids(2, length))
        kept = length if settings.attention_window is None else min(length, settings.attention_window - 1)
        recurrent = 256 * settings.dim + 2 * settings.dim * 4
        attending = 2 * settings.num_kv_heads * (settings.dim // settings.num_heads) * kept * 4
        kinds = settings.kinds
        assert state.num_bytes == 2 * (kinds.count("R") * recurrent + kinds.count("T") * attending)
        assert state.context == (kept if "T" in kinds else 0)


def test_what_is_saved_is_what_is_held_and_no_room_behind_it() -> None:
    model = hybrid_model(dtype=torch.float32, schedule="T", num_layers=1, num_heads=1, num_kv_heads=1)
    state = model.new_state(1, 4096)
    read(model, draw_ids(1, 10), state)
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    assert file.getbuffer().nbytes < state.num_bytes + 4096


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_the_recurrent_state_is_fp32_whatever_the_model_is(half: torch.dtype) -> None:
    model = hybrid_model(dtype=torch.float32, schedule="RT", num_layers=2).to(half)
    state = read(model, draw_ids(1, 20))
    recurrent, attending = (layer.tensors() for layer in state.layers)
    assert recurrent["wkv_BHNN"].dtype == torch.float32
    assert {attending["keys_BGCA"].dtype, recurrent["time_shift_BD"].dtype, recurrent["channel_shift_BD"].dtype} == {
        half
    }


@by_model
def test_under_autocast_the_recurrent_state_is_fp32_and_pieces_agree(overrides: dict) -> None:
    model, ids_BS = hybrid_model(dtype=torch.float32, **overrides), draw_ids(2, 30)
    with torch.autocast("cpu", torch.bfloat16):
        state = read(model, ids_BS[:, :20])
        found_BSD = go_on(model, state, ids_BS[:, 20:])
        with torch.no_grad():
            whole_BSD = model(ids_BS).hidden_BSD
    for layer in state.layers:
        if "wkv_BHNN" in layer.tensors():
            assert layer.tensors()["wkv_BHNN"].dtype == torch.float32
    assert (found_BSD.float() - whole_BSD[:, 20:].float()).abs().median() < 0.05


@by_model
def test_rollback_keeps_what_was_committed(overrides: dict) -> None:
    """A commit is a clone: twice is once; what was read since is forgotten by going back, and going back twice, or
    committing after it, changes nothing."""
    model, ids_BS = hybrid_model(dtype=torch.float32, **overrides), draw_ids(1, 12)
    state = read(model, ids_BS)
    committed = state.clone()
    assert same(contents(committed.clone()), contents(committed))
    read(model, draw_ids(1, 5, seed=3), state)
    assert not same(contents(state), contents(committed))
    state = committed.clone()  # rollback
    assert same(contents(state), contents(committed))
    assert same(contents(state.clone()), contents(committed))  # commit after rollback
    expected_BSD = go_on(model, read(model, ids_BS), draw_ids(1, 6, seed=4))
    assert torch.equal(go_on(model, state, draw_ids(1, 6, seed=4)), expected_BSD)
    assert same(contents(committed), contents(read(model, ids_BS)))


@by_model
def test_a_state_generates_further_after_a_generation(overrides: dict) -> None:
    """Room that was made while generating, in inference mode, can be written to outside of it."""
    model, prompt_BS = hybrid_model(dtype=torch.float32, **overrides), draw_ids(1, 4)
    state = model.new_state(1)
    drawn_BS = torch.stack(list(generate(model, prompt_BS, max_new_tokens=6, temperature=0, state=state)), dim=1)
    assert state.position == 9
    whole_BS = torch.cat((prompt_BS, drawn_BS), dim=1)
    for name, twin in {"itself": state, "detached": state.detach()}.items():
        with torch.no_grad():
            found_BSD = model(drawn_BS[:, -1:], state=twin).hidden_BSD
            expected_BSD = model(whole_BS).hidden_BSD[:, -1:]
        torch.testing.assert_close(found_BSD, expected_BSD, rtol=0, atol=1e-5, msg=name)


@by_model
def test_a_text_can_be_trained_on_piece_by_piece(overrides: dict) -> None:
    model, ids_BS = hybrid_model(dtype=torch.float32, **overrides).train(), draw_ids(2, 41)
    state = model.new_state(2)
    for start in (0, 20):
        piece_BS = ids_BS[:, start : start + 20]
        loss = model(piece_BS, state=state).loss(ids_BS[:, start + 1 : start + 21])
        loss.backward()
        state = state.detach()
        assert all(not tensor.requires_grad for tensor in contents(state))
    assert model.embedding.weight.grad is not None
    assert state.position == 40


OTHERS = {
    "fewer blocks": {"schedule": "RT", "num_layers": 2},
    "another order": {"schedule": "TRR"},
    "wider": {"dim": 128},
    "other key-value heads": {"num_kv_heads": 4},
}


@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS.keys())
def test_the_state_of_another_model_is_refused_in_one_line(overrides: dict) -> None:
    saved = read(hybrid_model(dtype=torch.float32, **overrides), draw_ids(1, 5)).to_dict()
    fresh = hybrid_model(dtype=torch.float32).new_state(1)
    with pytest.raises(InputError) as refusal:
        fresh.load_dict(saved)
    assert "the state" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert fresh.position == 0


KEYS, VALUES = torch.zeros(1, 2, 5, 16), torch.zeros(1, 2, 4, 16)


def last_block(saved: dict, of_block: dict) -> dict:
    return saved | {"layers": [*saved["layers"][:2], of_block]}


def every_block(saved: dict, change: Any) -> dict:
    return saved | {"layers": [{name: change(x) for name, x in of_block.items()} for of_block in saved["layers"]]}


BROKEN = {
    "nothing": lambda saved: {},
    "no container": lambda saved: [1, 2],
    "no position": lambda saved: {"layers": saved["layers"]},
    "position of words": lambda saved: saved | {"position": "many"},
    "negative position": lambda saved: saved | {"position": -1},
    "words for layers": lambda saved: saved | {"layers": "RRT"},
    "words for tensors": lambda saved: every_block(saved, lambda x: "x"),
    "whole numbers": lambda saved: every_block(saved, Tensor.long),
    "keys without values": lambda saved: last_block(saved, {"keys_BGCA": KEYS}),
    "fewer values than keys": lambda saved: last_block(saved, {"keys_BGCA": KEYS, "values_BGCA": VALUES}),
    "more tokens than were read": lambda saved: saved | {"position": 3},
    "other rows in a block": lambda saved: last_block(
        saved, {"keys_BGCA": KEYS.expand(2, -1, -1, -1), "values_BGCA": KEYS.expand(2, -1, -1, -1)}
    ),
}


@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_state_is_refused_in_one_line_and_not_half_taken_over(break_it: Any) -> None:
    model = hybrid_model(dtype=torch.float32)
    saved = read(model, draw_ids(1, 5)).to_dict()
    fresh = model.new_state(1)
    held = contents(fresh)
    with pytest.raises(InputError) as refusal:
        fresh.load_dict(break_it(saved))
    assert "\n" not in str(refusal.value)
    assert same(contents(fresh), held)


def test_a_state_is_taken_over_in_the_models_own_precision() -> None:
    model = hybrid_model(dtype=torch.float32, schedule="RT", num_layers=2)
    saved = read(model, draw_ids(1, 5)).to_dict()
    half = model.to(torch.bfloat16)
    state = half.new_state(1)
    state.load_dict(saved)
    recurrent, attending = (layer.tensors() for layer in state.layers)
    assert recurrent["wkv_BHNN"].dtype == torch.float32
    assert attending["keys_BGCA"].dtype == recurrent["time_shift_BD"].dtype == torch.bfloat16
    with torch.no_grad():
        assert half(draw_ids(1, 3), state=state).hidden_BSD.isfinite().all()
