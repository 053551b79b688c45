"""The whole model: what it may see, how it starts, what it learns through, and its precisions.

Axes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from chronomoe.model.lm import LanguageModel, number_documents
from chronomoe.model.products import onednn_multiplies

MakeModel = Callable[..., LanguageModel]
MakeIds = Callable[..., Tensor]
LENGTH = 12


def steer(model: LanguageModel) -> LanguageModel:
    """Give every layer a field that is far from neutral."""
    model.expert_bias_LE.copy_(torch.linspace(-1, 1, model.expert_bias_LE.numel()).view_as(model.expert_bias_LE))
    model.log_temperature_LE.copy_(0.3 * model.expert_bias_LE.flip(-1))
    return model


@pytest.mark.parametrize("dense", [False, True], ids=["experts", "dense"])
@pytest.mark.parametrize("changed", [1, 5, LENGTH - 1])
@torch.no_grad()
def test_changing_a_token_leaves_the_logits_before_it_alone(
    tiny_model: MakeModel, draw_ids: MakeIds, changed: int, dense: bool
) -> None:
    model = steer(tiny_model(dense=dense))
    ids_BS = draw_ids(2, LENGTH)
    other_BS = ids_BS.clone()
    other_BS[:, changed] = (other_BS[:, changed] + 1) % 32
    before, after = model(ids_BS).logits_BSV, model(other_BS).logits_BSV
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-5)
    assert (after[:, changed:] - before[:, changed:]).abs().amax(dim=-1).gt(1e-3).all()


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = steer(tiny_model()), draw_ids(3, LENGTH)
    together = model(ids_BS).logits_BSV
    for row in range(3):
        torch.testing.assert_close(together[row], model(ids_BS[row : row + 1]).logits_BSV[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_packed_sequence_with_a_document_mask_equals_its_documents_run_apart(
    tiny_model: MakeModel, draw_ids: MakeIds
) -> None:
    # Rotary attention sees distances only, so a document reads the same wherever in the sequence it starts.
    model, ids_BS, end = steer(tiny_model()), draw_ids(2, LENGTH), 31
    ids_BS = ids_BS % end
    ids_BS[0, [3, 4, 8]] = ids_BS[1, 6] = end
    packed = model(ids_BS, document_BS=number_documents(ids_BS, end)).logits_BSV
    for row, borders in enumerate([(0, 4, 5, 9, LENGTH), (0, 7, LENGTH)]):
        for start, stop in pairwise(borders):
            alone = model(ids_BS[row : row + 1, start:stop]).logits_BSV[0]
            torch.testing.assert_close(packed[row, start:stop], alone, rtol=0, atol=2e-5)
    assert not torch.allclose(packed, model(ids_BS).logits_BSV, atol=1e-3)


def test_the_end_token_belongs_to_the_document_it_ends() -> None:
    ids_BS = torch.tensor([[5, 6, 0, 7, 0, 0, 8], [0, 1, 2, 3, 4, 5, 6]])
    assert number_documents(ids_BS, 0).tolist() == [[0, 0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_real_position(tiny_model: MakeModel, draw_ids: MakeIds, side: str) -> None:
    model, ids_BS = steer(tiny_model()), draw_ids(1, LENGTH)
    padding = torch.zeros(1, 5, dtype=torch.int64)
    real = torch.tensor([[True] * LENGTH])
    parts = [(ids_BS, real), (padding, padding.bool())]
    padded_BS, real_BC = (torch.cat(p, dim=1) for p in zip(*(parts[::-1] if side == "left" else parts), strict=True))
    logits_BSV = model(padded_BS, real_BC=real_BC).logits_BSV
    assert torch.isfinite(logits_BSV).all()
    torch.testing.assert_close(logits_BSV[real_BC], model(ids_BS).logits_BSV[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("dim", "vocab_size"), [(64, 256), (256, 1000), (512, 4096)])
@torch.no_grad()
def test_the_first_loss_is_within_five_percent_of_ln_v(
    tiny_model: MakeModel, dim: int, vocab_size: int, tied: bool
) -> None:
    model = tiny_model(
        dim=dim, vocab_size=vocab_size, hidden_dim=32, init_std=0.02, tie_embeddings=tied, max_seq_len=65
    )
    # In half of the rows every token comes twice: a tied head answers its own input, which must not decide the loss.
    ids_BS = torch.randint(vocab_size, (8, 65), generator=torch.Generator().manual_seed(0))
    ids_BS[4:] = ids_BS[4:, :33].repeat_interleave(2, dim=1)[:, :65]
    loss = cross_entropy(model(ids_BS[:, :-1]).logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten())
    assert abs(loss.item() / math.log(vocab_size) - 1) < 0.05


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not(tiny_model: MakeModel) -> None:
    tied, untied = tiny_model(tie_embeddings=True), tiny_model()
    assert tied.head.weight is tied.embedding.weight
    assert not torch.equal(untied.head.weight, untied.embedding.weight)
    saved = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert saved == tied.embedding.weight.numel()


def test_one_seed_gives_one_model(tiny_model: MakeModel) -> None:
    first, again, other = tiny_model(seed=3), tiny_model(seed=3), tiny_model(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize("actuation", ["selection", "logits"])
def test_gradients_reach_every_gate_and_every_expert(tiny_model: MakeModel, draw_ids: MakeIds, actuation: str) -> None:
    model = tiny_model(actuation=actuation)
    output = model(draw_ids(4, LENGTH))
    cross_entropy(output.logits_BSV.flatten(0, 1), draw_ids(4, LENGTH, seed=2).flatten()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        per_part = weight.grad.flatten(1) if "experts" in name or "gate.weight" in name else weight.grad.view(1, -1)
        assert per_part.abs().sum(dim=1).gt(0).all(), name


def test_forward_leaves_its_inputs_unchanged(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    ids_BS, real_BC = draw_ids(2, LENGTH), draw_ids(2, LENGTH, seed=2) > 8
    documents_BS = number_documents(ids_BS, 0)
    copies = [tensor.clone() for tensor in (ids_BS, real_BC, documents_BS)]
    tiny_model().train()(ids_BS, real_BC=real_BC, document_BS=documents_BS)
    for tensor, copy in zip((ids_BS, real_BC, documents_BS), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_bf16_autocast_stays_close_to_fp32(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = tiny_model(num_layers=1, init_std=0.05), draw_ids(4, LENGTH)
    losses, gradients = [], []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits_BSV = model(ids_BS[:, :-1]).logits_BSV
        loss = cross_entropy(logits_BSV.float().flatten(0, 1), ids_BS[:, 1:].flatten())
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


PRECISIONS = {"fp32": (False, False), "autocast": (True, False), "working copies": (True, True)}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("automatic", "copies"), PRECISIONS.values(), ids=PRECISIONS.keys())
def test_the_loss_and_its_gradients_are_those_of_the_logits(
    tiny_model: MakeModel, draw_ids: MakeIds, automatic: bool, copies: bool, tied: bool
) -> None:
    ids_BS, found = draw_ids(4, LENGTH), []
    for whole in (False, True):
        model = tiny_model(tie_embeddings=tied, init_std=0.1)
        if copies:
            model.keep_working_copies(torch.bfloat16, half_gradients=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
            output = model(ids_BS[:, :-1])
            targets_BS = ids_BS[:, 1:]
            logits_BSV = output.logits_BSV
            loss = output.loss(targets_BS)
        if whole:
            loss = cross_entropy(logits_BSV.float().flatten(0, 1), targets_BS.flatten())
        loss.backward()
        assert loss.dtype == torch.float32
        found.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    tolerance = 2**-5 if automatic else 1e-5  # bf16 keeps 8 bits, of which a chain of products loses some
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not onednn_multiplies("cpu", torch.float32), reason="this torch has no such operator")
def test_the_loss_multiplies_by_the_library_of_the_head(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = tiny_model(), draw_ids(4, LENGTH)
    for library in ("torch", "onednn"):
        model.head.library = library
        output = model(ids_BS)
        with Operators() as ran:
            output.loss(ids_BS)
        assert ("mkldnn._linear_pointwise" in ran.names) == (library == "onednn")
        assert ("aten.mm" in ran.names) == (library == "torch")


def test_a_dense_model_routes_nothing_and_holds_no_field(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model(dense=True).train()
    assert model(draw_ids(1, LENGTH)).routings == []
    assert model.expert_bias_LE.numel() == model.sensor_LEC.numel() == 0
    assert not any("router" in name for name, _ in model.named_parameters())
