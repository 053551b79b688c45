"""Products in two libraries and from working copies, against torch's own operators and plain casts.

Axes: M rows, K shared, N outputs, P rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chronomoe.model.experts import ExpertBank
from chronomoe.model.lm import LanguageModel
from chronomoe.model.products import (
    Linear,
    WorkingCopy,
    by_columns,
    into,
    keep_working_copy,
    onednn_multiplies,
    product_dtype,
    working,
    working_copy_of,
)
from chronomoe.training.adamw import AdamW

BF16 = torch.bfloat16
needs_onednn = pytest.mark.skipif(not onednn_multiplies("cpu", torch.float32), reason="this torch has no such operator")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(x: Tensor) -> Tensor:
    """The same values, last two axes stored the other way round."""
    result = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not result.is_contiguous()
    return result


def twins(*shape: int, library: str = "onednn") -> tuple[Linear, Linear]:
    """Two layers of one weight: by `library`, by torch."""
    layers = Linear(*shape), Linear(*shape)
    for layer in layers:
        layer.weight.data.copy_(normal(shape[1], shape[0]))
    layers[0].library = library
    return layers


def learned(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def remembered(weight: Tensor) -> WorkingCopy:
    copy = working_copy_of(weight)
    assert copy is not None
    return copy


ROWS = {"one row": (1,), "few rows": (8,), "rows": (20,), "batch": (3, 7), "two batches": (2, 3, 4)}
by_rows = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
by_layout = pytest.mark.parametrize("layout", [Tensor.contiguous, strided], ids=["contiguous", "strided"])


@needs_onednn
@by_rows
@by_layout
def test_a_linear_layer_by_onednn_equals_torchs_in_values_and_gradients(
    rows: tuple[int, ...], layout: Callable[[Tensor], Tensor]
) -> None:
    if rows == (1,) and layout is strided:
        pytest.skip("one row has one layout")
    ours, theirs = twins(6, 10)
    x, direction = layout(normal(*rows, 6, seed=1)), layout(normal(*rows, 10, seed=2))
    results = []
    for layer in (ours, theirs):
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        results.append([y, *torch.autograd.grad(y, (leaf, layer.weight), direction)])
        assert y.shape == (*rows, 10)
    for by_onednn, by_torch in zip(*results, strict=True):
        torch.testing.assert_close(by_onednn, by_torch)


@needs_onednn
@pytest.mark.parametrize("layout", [Tensor.contiguous, Tensor.t], ids=["as it is", "transposed"])
def test_a_product_is_written_where_it_is_told_by_either_library(layout: Callable[[Tensor], Tensor]) -> None:
    a_MK, b_NK = normal(5, 5, seed=1), layout(normal(5, 5, seed=2))
    reference_MN = (a_MK.double() @ b_NK.double().T).float()
    for library in ("torch", "onednn"):
        place_MN = torch.full((8, 5), -7.0)
        into(library, a_MK)(place_MN[2:7], a_MK, b_NK)
        torch.testing.assert_close(place_MN[2:7], reference_MN)
        assert (place_MN[[0, 1, 7]] == -7).all()


@pytest.mark.parametrize("dtype", [BF16, torch.float64], ids=["bf16", "float64"])
def test_what_onednn_does_not_multiply_is_left_to_torch(dtype: torch.dtype) -> None:
    ours, theirs = (layer.to(dtype) for layer in twins(6, 10))
    x_MK = normal(20, 6, seed=1, dtype=dtype)
    assert torch.equal(ours(x_MK), theirs(x_MK))


@pytest.mark.parametrize("rows", range(1, 10))
@pytest.mark.parametrize("outputs", [7, 10], ids=["odd", "even"])
def test_few_rows_without_a_gradient_give_what_they_give_with_one(rows: int, outputs: int) -> None:
    layer = Linear(6, outputs)
    x_MK = normal(rows, 6)
    with torch.no_grad():
        few_MN = layer(x_MK)
        torch.testing.assert_close(by_columns(x_MK, layer.weight), few_MN)
    torch.testing.assert_close(few_MN, layer(x_MK).detach())


def test_few_rows_of_a_batch_keep_their_shape() -> None:
    layer = Linear(6, 10)
    x = strided(normal(2, 3, 6))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.T)


@needs_onednn
@by_layout
@pytest.mark.parametrize("activation", ["swiglu", "relu", "squared_relu", "gelu"])
def test_an_expert_bank_by_onednn_equals_torchs_in_values_and_gradients(
    activation: str, layout: Callable[[Tensor], Tensor]
) -> None:
    load_E = torch.tensor([3, 0, 7, 1])
    x_PD, direction_PD = layout(normal(11, 8, seed=1)), layout(normal(11, 8, seed=2))
    results = []
    for library in ("onednn", "torch"):
        bank = ExpertBank(4, 8, 12, activation)
        bank.library = library
        for seed, weight in enumerate(bank.parameters()):
            weight.data.copy_(layout(normal(*weight.shape, seed=seed)))
        leaf = x_PD.detach().requires_grad_()
        y_PD = bank(leaf, load_E)
        results.append([y_PD, *torch.autograd.grad(y_PD, (leaf, *bank.parameters()), direction_PD)])
    for by_onednn, by_torch in zip(*results, strict=True):
        torch.testing.assert_close(by_onednn, by_torch, rtol=1e-5, atol=1e-5 * float(by_torch.detach().abs().max()))


@pytest.mark.parametrize("library", ["torch", pytest.param("onednn", marks=needs_onednn)])
def test_an_expert_bank_runs_in_its_rows_dtype_whatever_autocast_says(library: str) -> None:
    bank, load_E, x_PD = ExpertBank(4, 8, 12), torch.tensor([3, 0, 7, 1]), normal(11, 8, seed=1)
    bank.library = library
    for seed, weight in enumerate(bank.parameters()):
        weight.data.copy_(normal(*weight.shape, seed=seed))
    expected_PD = bank(x_PD, load_E)
    with torch.autocast("cpu", BF16):
        y_PD = bank(x_PD, load_E)
    assert y_PD.dtype == torch.float32
    assert torch.equal(y_PD, expected_PD)


def test_an_expert_bank_under_autocast_equals_one_cast_beforehand() -> None:
    load_E, x_PD, direction_PD = torch.tensor([3, 0, 7, 1]), normal(11, 8, seed=1, dtype=BF16), normal(11, 8, seed=2)
    results = []
    for automatic in (True, False):
        bank = ExpertBank(4, 8, 12)
        for seed, weight in enumerate(bank.parameters()):
            weight.data.copy_(normal(*weight.shape, seed=seed))
        bank = bank if automatic else bank.to(BF16)
        leaf_PD = x_PD.clone().requires_grad_()
        with torch.autocast("cpu", BF16, enabled=automatic):
            y_PD = bank(leaf_PD, load_E)
        gradients = torch.autograd.grad(y_PD, (leaf_PD, *bank.parameters()), direction_PD.to(BF16))
        assert all(g.dtype == (torch.float32 if automatic else BF16) for g in gradients[1:])
        results.append([y_PD, *(g.to(BF16) for g in gradients)])
    for ours, explicit in zip(*results, strict=True):
        assert torch.equal(ours, explicit)


def test_products_run_in_autocasts_dtype_where_it_is_on() -> None:
    x = normal(2, 2)
    assert product_dtype(x) == torch.float32
    with torch.autocast("cpu", BF16):
        assert product_dtype(x) == product_dtype(x.double()) == BF16
        with torch.autocast("cpu", enabled=False):
            assert product_dtype(x) == torch.float32


@torch.no_grad()
def decay(weight: nn.Parameter) -> None:
    weight.mul_(0.5)


def through_another_name(weight: nn.Parameter) -> None:
    weight.detach()[0].fill_(float(weight.detach().max()) + 1)


def initialise(weight: nn.Parameter) -> None:
    nn.init.normal_(weight)


def load(weight: nn.Parameter) -> None:
    holder = nn.Module()
    holder.weight = weight
    holder.load_state_dict({"weight": weight + 1})


def step(optimizer: type[torch.optim.Optimizer], **how: bool) -> Callable[[nn.Parameter], None]:
    def change(weight: nn.Parameter) -> None:
        weight.grad = torch.ones_like(weight)
        optimizer([weight], lr=0.5, **how).step()

    return change


def step_beside_a_gpu(weight: nn.Parameter) -> None:
    """As where weights are not on a processor: torch's own fused step, which raises no version."""
    weight.grad = torch.ones_like(weight)
    elsewhere = nn.Parameter(torch.empty(1, device="meta"))
    AdamW([weight, elsewhere], lr=0.5, fused=True).step()


CHANGES: dict[str, Callable[[nn.Parameter], None]] = {
    "in place": decay,
    "one row, through another name": through_another_name,
    "initialisation": initialise,
    "load_state_dict": load,
    "sgd": step(torch.optim.SGD, foreach=False),
    "torch's adamw": step(torch.optim.AdamW, foreach=False),
    "torch's foreach adamw": step(torch.optim.AdamW, foreach=True),
    "our adamw": step(AdamW, fused=True),
    "our adamw, not fused": step(AdamW, fused=False),
    "our adamw, not on a processor": step_beside_a_gpu,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_working_copy_is_never_read_stale(change: Callable[[nn.Parameter], None]) -> None:
    weight = nn.Parameter(normal(4, 3))
    keep_working_copy(weight, BF16, half_gradient=False)
    for _ in range(3):
        assert torch.equal(working(weight, BF16), weight.to(BF16))
        before = weight.detach().clone()
        change(weight)
        assert not torch.equal(weight.to(BF16), before.to(BF16))
        assert torch.equal(working(weight, BF16), weight.to(BF16))


def test_a_copy_elsewhere_than_its_weight_is_none_of_it() -> None:
    weight = nn.Parameter(normal(4, 3))
    assert WorkingCopy(weight.detach().to(BF16), weight._version).is_of(weight)
    assert not WorkingCopy(torch.empty(4, 3, dtype=BF16, device="meta"), weight._version).is_of(weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_working_copy_follows_its_weight_to_a_gpu_and_back() -> None:
    layer = Linear(3, 4)
    keep_working_copy(layer.weight, BF16, half_gradient=False)
    for device in ("cpu", "cuda", "cpu"):
        layer.to(device)
        for _ in range(2):
            assert torch.equal(working(layer.weight, BF16), layer.weight.to(BF16))
            decay(layer.weight)


def test_a_working_copy_is_cast_once_per_change() -> None:
    weight = nn.Parameter(normal(4, 3))
    keep_working_copy(weight, BF16, half_gradient=False)
    memory = remembered(weight).tensor
    working(weight, BF16)
    version = memory._version
    for _ in range(3):
        working(weight, BF16)
    assert memory._version == version
    decay(weight)
    working(weight, BF16)
    working(weight, BF16)
    assert memory._version == version + 1
    assert remembered(weight).tensor is memory


def test_a_working_copy_reads_the_same_memory_every_time() -> None:
    weight = nn.Parameter(normal(4, 3))
    keep_working_copy(weight, BF16, half_gradient=False)
    assert working(weight, BF16).data_ptr() == working(weight, BF16).data_ptr()


def test_other_dtypes_than_the_copys_are_cast_from_the_weight() -> None:
    weight = nn.Parameter(normal(4, 3))
    keep_working_copy(weight, BF16, half_gradient=False)
    assert working(weight, torch.float32) is weight
    assert torch.equal(working(weight, torch.float16), weight.to(torch.float16))
    assert torch.equal(working(weight, torch.float64), weight.double())


@pytest.mark.parametrize("half", [False, True], ids=["fp32 gradient", "bf16 gradient"])
def test_the_gradient_reaches_the_master_in_the_dtype_asked_for(half: bool) -> None:
    layer, x_MK, direction_MN = Linear(6, 10), normal(20, 6, seed=1, dtype=BF16), normal(20, 10, seed=2, dtype=BF16)
    keep_working_copy(layer.weight, BF16, half_gradient=half)
    layer(x_MK).backward(direction_MN)
    gradient = learned(layer.weight)
    assert gradient.dtype == (BF16 if half else torch.float32)
    assert layer.weight.dtype == torch.float32
    assert torch.equal(gradient.to(BF16), direction_MN.T @ x_MK)


def test_two_uses_of_one_copy_add_up_in_the_masters_gradient() -> None:
    layer, x_MK = Linear(6, 10), normal(20, 6, seed=1, dtype=BF16)
    layer(x_MK).float().sum().backward()
    once = learned(layer.weight).clone()
    layer.weight.grad = None
    keep_working_copy(layer.weight, BF16, half_gradient=False)
    for _ in range(2):
        layer(x_MK).float().sum().backward()
    assert torch.equal(learned(layer.weight), 2 * once)


def test_a_linear_layer_with_a_copy_equals_one_without_bit_for_bit() -> None:
    ours, theirs = twins(6, 10, library="torch")
    keep_working_copy(ours.weight, BF16, half_gradient=False)
    x_MK, direction_MN = normal(20, 6, seed=1, dtype=BF16), normal(20, 10, seed=2, dtype=BF16)
    for _ in range(2):
        for layer in (ours, theirs):
            layer.weight.grad = None
            layer(x_MK).backward(direction_MN)
            torch.optim.SGD([layer.weight], lr=0.1).step()
        assert torch.equal(learned(ours.weight), learned(theirs.weight))
        assert torch.equal(ours(x_MK), theirs(x_MK))


ATTENTION = {"attention.qkv.weight", "attention.out.weight"}
EXPERTS = ATTENTION | {"ffn.experts.gate_up_EFD", "ffn.experts.down_EDF"}
SHARED = EXPERTS | {"ffn.shared_experts.gate_up.weight", "ffn.shared_experts.down.weight"}
KINDS: dict[str, tuple[dict[str, object], set[str]]] = {
    "experts": ({}, EXPERTS),
    "relu": ({"activation": "relu"}, EXPERTS),
    "shared experts": ({"num_shared_experts": 1}, SHARED),
    "dense": ({"dense": True}, ATTENTION | {"ffn.gate_up.weight", "ffn.down.weight"}),
}


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize(("overrides", "multiplying"), KINDS.values(), ids=KINDS.keys())
def test_exactly_the_matrices_that_multiply_have_a_copy(
    tiny_model: Callable[..., LanguageModel], overrides: dict[str, object], multiplying: set[str], tied: bool
) -> None:
    model = tiny_model(tie_embeddings=tied, **overrides)
    model.keep_working_copies(BF16, half_gradients=False)
    kept = {name for name, weight in model.named_parameters() if working_copy_of(weight) is not None}
    expected = {f"blocks.{layer}.{name}" for layer in range(len(model.blocks)) for name in multiplying}
    assert kept == expected | {"embedding.weight" if tied else "head.weight"}


@pytest.mark.parametrize("half", [False, True], ids=["fp32 gradients", "bf16 gradients"])
def test_gradients_are_half_for_multiplying_matrices_alone(
    tiny_model: Callable[..., LanguageModel], draw_ids: Callable[..., Tensor], half: bool
) -> None:
    model = tiny_model().train()
    model.keep_working_copies(BF16, half_gradients=half)
    with torch.autocast("cpu", BF16):
        model(draw_ids(2, 12)).logits_BSV.float().logsumexp(dim=-1).sum().backward()
    for weight in model.parameters():
        copied = working_copy_of(weight) is not None
        assert learned(weight).dtype == (BF16 if half and copied else torch.float32)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_logits_from_copies_equal_those_from_casts_bit_for_bit_also_after_a_change(
    tiny_model: Callable[..., LanguageModel], draw_ids: Callable[..., Tensor], tied: bool
) -> None:
    ids_BS = draw_ids(2, 12)
    ours, theirs = tiny_model(tie_embeddings=tied), tiny_model(tie_embeddings=tied)
    ours.keep_working_copies(BF16, half_gradients=False)
    for _ in range(2):
        with torch.autocast("cpu", BF16):
            assert torch.equal(ours(ids_BS).logits_BSV, theirs(ids_BS).logits_BSV)
        for model in (ours, theirs):
            for weight in model.parameters():
                decay(weight)
    theirs.load_state_dict({name: 2 * tensor for name, tensor in theirs.state_dict().items()})
    ours.load_state_dict(theirs.state_dict())
    with torch.autocast("cpu", BF16):
        assert torch.equal(ours(ids_BS).logits_BSV, theirs(ids_BS).logits_BSV)
