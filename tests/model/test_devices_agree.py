"""Every kernel, dispatch, router and attention path on a device against the processor in fp64.

On a processor the same bodies run in another precision, so that a GPU is the only thing new on a GPU.

Axes: P rows, T tokens, D model dim, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from chronomoe.model.attention import Attention, rotary_angles
from chronomoe.model.chunked_wkv import wkv_chunked
from chronomoe.model.experts import ExpertBank
from chronomoe.model.fla_backend import outputs_and_gradients
from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.training.autotune import Kernels, use

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the norm of a difference, relative to the norm."""
on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])

ROUTERS: dict[str, dict[str, object]] = {
    "mixtral": {"kind": "mixtral"},
    "sigmoid": {"kind": "mixtral", "gate": "sigmoid"},
    "softmax": {"kind": "mixtral", "gate": "softmax"},
    "switch": {"kind": "switch", "gate": "softmax", "top_k": 1},
    "capacity": {"kind": "mixtral", "capacity_factor": 1.0},
    "expert choice": {"kind": "expert_choice", "capacity_factor": 2.0},
}


def distance(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest of the relative distances."""
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def bank_of(kernel: str, activation: str) -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(4, 32, 48, activation).double()
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    bank.kernel = kernel
    return bank


def run_bank(bank: ExpertBank, x_PD: Tensor, device: str, dtype: torch.dtype) -> list[Tensor]:
    bank.to(device, dtype)
    bank.zero_grad()
    x_PD = x_PD.to(device, dtype, copy=True).requires_grad_()
    y_PD = bank(x_PD, torch.tensor([9, 0, 30, 1], device=device))
    y_PD.backward(torch.linspace(-1, 1, y_PD.numel(), device=device).view_as(y_PD).to(dtype))
    return [y_PD, *(tensor.grad for tensor in (x_PD, *bank.parameters()) if tensor.grad is not None)]


@on_devices
@in_dtypes
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("kernel", ["grouped", "looped"])
def test_expert_kernels_agree_with_fp64_on_the_processor(
    kernel: str, activation: str, dtype: torch.dtype, device: str
) -> None:
    x_PD = torch.randn(40, 32, generator=torch.Generator().manual_seed(1)).to(dtype).double()
    expected = run_bank(bank_of("looped", activation).to(dtype), x_PD, "cpu", torch.float64)
    found = run_bank(bank_of(kernel, activation), x_PD, device, dtype)
    assert len(found) == 4
    assert distance(found, expected) < TOLERANCE[dtype]


def model_of(**router: object) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"dim": 32, "hidden_dim": 48, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 64, "max_seq_len": 64}
    settings = ModelSettings(num_layers=1, num_experts=4, init_std=0.3, **sizes)
    return LanguageModel(settings, RouterSettings(**router))  # type: ignore[arg-type]


@on_devices
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_routers_and_dispatches_choose_the_same_experts_and_learn_the_same(
    router: dict[str, object], mode: str, device: str
) -> None:
    """One layer, so that no near tie of an earlier one can send a token elsewhere."""
    ids_BS = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(2))

    def outcome(model: LanguageModel) -> tuple[Tensor, list[Tensor]]:
        output = model.train(mode == "training")(ids_BS.to(model.expert_bias_LE.device))
        logits_BSV = output.logits_BSV
        logits_BSV.square().mean().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return output.routings[0].topk_expert_ids_TK.cpu(), [logits_BSV, *gradients]

    expected_ids, expected = outcome(model_of(**router).double())
    found_ids, found = outcome(model_of(**router).to(device))
    assert torch.equal(found_ids, expected_ids)
    assert distance(found, expected) < 1e-4


@on_devices
def test_chunks_of_rwkv_agree_with_fp64_on_the_processor(device: str) -> None:
    found = outputs_and_gradients(wkv_chunked, torch.device(device), torch.float32, 64)
    expected = outputs_and_gradients(wkv_chunked, torch.device("cpu"), torch.float64, 64)
    assert distance(found, expected) < 1e-5


@on_devices
def test_flash_attention_agrees_with_the_plain_products(device: str) -> None:
    torch.manual_seed(0)
    attention = Attention(128, 4, 4).to(device, torch.bfloat16)
    attention.kernel = "sdpa"
    rotation = rotary_angles(torch.arange(96, device=device), 32, 10_000.0)
    x_BSD = torch.randn(2, 96, 128, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    found = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        attention.zero_grad()
        with sdpa_kernel(backend):
            y_BSD = attention(x_BSD, rotation, None, None)
            y_BSD.square().mean().backward()
        found.append([y_BSD, *(parameter.grad for parameter in attention.parameters())])
    assert distance(*found) < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@without_gpu
def test_compiled_element_wise_parts_agree_with_eager_ones() -> None:
    ids_BS = torch.randint(64, (2, 24), device="cuda")
    outcomes: list[list[Tensor]] = []
    for elementwise in ("eager", "compiled"):
        model = model_of(kind="mixtral").cuda()
        use(model, Kernels(elementwise=elementwise))
        loss = model(ids_BS).loss(ids_BS)
        loss.backward()
        outcomes.append([loss, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    assert distance(*outcomes) < 1e-5


@pytest.fixture
def deterministic() -> Iterable[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@on_devices
def test_a_step_is_deterministic_and_takes_up_where_its_state_was_saved(
    device: str, deterministic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps at once equal two, a state saved and loaded into another model, and two more, bit for bit."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    def build() -> tuple[LanguageModel, torch.optim.Optimizer]:
        model = model_of(kind="mixtral").to(device)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)

    def advance(model: LanguageModel, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
        for step in steps:
            ids_BS = torch.randint(64, (2, 25), generator=torch.Generator().manual_seed(step)).to(device)
            with torch.autocast(device, torch.bfloat16):
                loss = model(ids_BS[:, :-1]).loss(ids_BS[:, 1:])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, first, second = build(), build(), build()
    advance(*whole, range(4))
    advance(*first, range(2))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    advance(*second, range(2, 4))
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, second[0].state_dict()[name]), name
