"""Reading a text piece by piece with a loaded model: its state, and generation from it.

Axes: B batch, S sequence.
"""

from __future__ import annotations

import pytest
import torch
from hub_models import DECODERS, tiny_hub_model
from torch import Tensor

from chronomoe.model.generation import generate
from chronomoe.pretrained.steered import SteeredModel
from chronomoe.settings import InputError

pytest.importorskip("transformers")
LENGTH = 14


def ids(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(1, 32, (batch, length), generator=torch.Generator().manual_seed(1))


def steered(name: str, **overrides: object) -> SteeredModel:
    """Under a field, in fp64, where a token's path does not depend on how it was batched."""
    base = tiny_hub_model(name, **overrides).double()
    base.set_experts_implementation("eager")
    model = SteeredModel(base)
    generator = torch.Generator().manual_seed(5)
    model.expert_bias_LE.copy_(0.3 * torch.randn(model.expert_bias_LE.shape, generator=generator))
    return model


@pytest.mark.parametrize("pieces", [[1] * LENGTH, [5, 1, 8], [LENGTH]], ids=["tokens", "pieces", "whole"])
@pytest.mark.parametrize("name", [*DECODERS, "windowed"])
@torch.no_grad()
def test_a_text_read_in_pieces_is_the_text_read_whole(name: str, pieces: list[int]) -> None:
    model = steered("mixtral", sliding_window=5) if name == "windowed" else steered(name)
    whole, state = model(ids()), model.new_state(2, capacity=4)
    logits, routed = [], []
    for piece_BS in ids().split(pieces, dim=1):
        output = model(piece_BS, state=state)
        logits.append(output.logits_BSV)
        routed.append([routing.topk_expert_ids_TK.view(2, -1, 2).sort(-1).values for routing in output.routings])
    assert state.position == LENGTH
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits_BSV, rtol=1e-5, atol=1e-6)
    for layer, routing in enumerate(whole.routings):
        in_pieces = torch.cat([piece[layer] for piece in routed], dim=1)
        assert torch.equal(in_pieces, routing.topk_expert_ids_TK.view(2, -1, 2).sort(-1).values)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_generation_gives_the_ids_of_transformers(name: str) -> None:
    base = tiny_hub_model(name)
    prompt = ids(batch=1, length=5)
    theirs = base.generate(prompt, max_new_tokens=20, do_sample=False, use_cache=True)[0, 5:].tolist()
    model = SteeredModel(base)
    ours = [int(id_B) for id_B in generate(model, prompt, max_new_tokens=20, temperature=0.0)]
    assert ours == theirs


def test_transformers_own_generate_is_steered_as_ours_is() -> None:
    model, prompt = SteeredModel(tiny_hub_model("mixtral")), ids(batch=1, length=5)
    plain = [int(id_B) for id_B in generate(model, prompt, max_new_tokens=20, temperature=0.0)]
    model.expert_bias_LE[:, 3] = 1e3
    ours = [int(id_B) for id_B in generate(model, prompt, max_new_tokens=20, temperature=0.0)]
    assert ours != plain
    assert model.base.generate(prompt, max_new_tokens=20, do_sample=False)[0, 5:].tolist() == ours


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
@torch.no_grad()
def test_a_state_is_a_point_to_come_back_to_and_to_take_rows_of(name: str) -> None:
    model = steered(name)
    state = model.new_state(2)
    model(ids()[:, :6], state=state)
    point, row = state.clone(), state.select(torch.tensor([1]))
    first = model(ids()[:, 6:], state=state).logits_BSV
    again = model(ids()[:, 6:], state=point).logits_BSV
    assert torch.equal(first, again)
    alone = model(ids()[1:, 6:], state=row).logits_BSV
    torch.testing.assert_close(alone, first[1:], rtol=1e-5, atol=1e-6)
    assert state.num_bytes == point.num_bytes > 0


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2"])
@torch.no_grad()
def test_a_state_is_saved_and_gone_on_from(name: str) -> None:
    model = steered(name)
    state, fresh = model.new_state(2), model.new_state(1)
    model(ids()[:, :6], state=state)
    fresh.load_dict(state.to_dict())
    assert torch.equal(
        model(ids()[:, 6:], state=fresh).logits_BSV,
        model(ids()[:, 6:], state=state).logits_BSV,
    )
    other = steered("olmoe" if name == "mixtral" else "mixtral", num_hidden_layers=2)
    with pytest.raises(InputError, match="blocks"):
        other.new_state(1).load_dict(state.to_dict())


@torch.no_grad()
def test_padding_on_the_left_of_a_streamed_text_is_not_seen() -> None:
    model, real_BC = steered("mixtral"), torch.ones(2, LENGTH, dtype=torch.bool)
    real_BC[0, :3] = False
    whole = model(ids(), real_BC=real_BC).logits_BSV
    state = model.new_state(2)
    first = model(ids()[:, :8], real_BC=real_BC[:, :8], state=state).logits_BSV
    second = model(ids()[:, 8:], real_BC=real_BC, state=state).logits_BSV
    torch.testing.assert_close(torch.cat((first, second), dim=1)[:, 3:], whole[:, 3:], rtol=1e-5, atol=1e-6)


def test_a_text_longer_than_the_model_can_read_is_refused_before_anything_is_drawn() -> None:
    model = SteeredModel(tiny_hub_model("mixtral"))
    with pytest.raises(ValueError, match="exceed max_seq_len=64"):
        generate(model, ids(), max_new_tokens=60)
