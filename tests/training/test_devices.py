"""Which hardware a run gets, and the refusal of a model that cannot fit."""

from __future__ import annotations

import os

import pytest
import torch

from chronomoe.model.sizing import Size
from chronomoe.settings import InputError
from chronomoe.training.devices import Hardware, check_memory, choose_hardware, settle_for
from chronomoe.training.settings import TrainerSettings

MIXTRAL_8X7B = Size(46_702_792_704, 12_879_921_152)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert choose_hardware(TrainerSettings(max_steps=1)).accelerator == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert choose_hardware(TrainerSettings(max_steps=1)).accelerator == "cuda"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_named_precision_is_kept(precision: str) -> None:
    trainer = TrainerSettings(accelerator="cpu", precision=precision, max_steps=1)
    assert choose_hardware(trainer) == Hardware("cpu", precision)


@pytest.mark.parametrize(
    ("amx", "avx512", "precision"),
    [(False, False, "32-true"), (True, False, "bf16-mixed"), (False, True, "bf16-mixed"), (True, True, "bf16-mixed")],
)
def test_on_a_processor_auto_is_bf16_where_it_multiplies_bf16(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert choose_hardware(TrainerSettings(accelerator="cpu", max_steps=1)) == Hardware("cpu", precision)
    for named in ("32-true", "bf16-mixed"):
        trainer = TrainerSettings(accelerator="cpu", precision=named, max_steps=1)
        assert choose_hardware(trainer) == Hardware("cpu", named)


@pytest.mark.parametrize(("bf16", "precision"), [(False, "32-true"), (True, "bf16-mixed")])
def test_on_a_gpu_auto_follows_the_gpu_not_the_processor(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: not bf16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert choose_hardware(TrainerSettings(max_steps=1)) == Hardware("cuda", precision)


def test_as_many_cpu_processes_as_cores_are_allowed_and_no_more() -> None:
    cores = len(os.sched_getaffinity(0))
    choose_hardware(TrainerSettings(accelerator="cpu", strategy="ddp", devices=cores, max_steps=1))
    with pytest.raises(InputError, match=f"at most {cores}"):
        choose_hardware(TrainerSettings(accelerator="cpu", strategy="ddp", devices=cores + 1, max_steps=1))


def test_a_model_that_cannot_fit_is_refused_with_the_number_of_devices_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = 64 * 2**30
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.__getitem__)
    needed = -(-MIXTRAL_8X7B.training_bytes // memory)
    with pytest.raises(InputError, match=f"at least {needed} devices.*trainer=fsdp"):
        check_memory(MIXTRAL_8X7B, TrainerSettings(max_steps=1), Hardware("cpu", "32-true"))


def test_sharding_divides_the_memory_a_device_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("", (), {"total_memory": 80 * 2**30}))
    sharded = TrainerSettings(strategy="fsdp", devices=8, num_nodes=2, max_steps=1)
    check_memory(MIXTRAL_8X7B, sharded, Hardware("cuda", "bf16-mixed"))
    replicated = TrainerSettings(strategy="ddp", devices=8, num_nodes=2, max_steps=1)
    with pytest.raises(InputError):
        check_memory(MIXTRAL_8X7B, replicated, Hardware("cuda", "bf16-mixed"))


@pytest.mark.parametrize(("devices", "fits"), [(1, True), (2, True), (3, False)])
def test_processes_share_the_memory_of_a_machine(monkeypatch: pytest.MonkeyPatch, devices: int, fits: bool) -> None:
    size = Size(2**20, 2**20)
    memory = 2 * size.training_bytes
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": memory}.__getitem__)
    trainer = TrainerSettings(strategy="ddp", devices=devices, max_steps=1)
    if fits:
        check_memory(size, trainer, Hardware("cpu", "32-true"))
        return
    with pytest.raises(InputError, match=r"at least \d+ devices"):
        check_memory(size, trainer, Hardware("cpu", "32-true"))


def test_fewer_steps_are_logged_on_a_gpu_unless_their_number_is_named() -> None:
    on_cpu, on_gpu = Hardware("cpu", "32-true"), Hardware("cuda", "bf16-mixed")
    unnamed, named = TrainerSettings(max_steps=1), TrainerSettings(log_every_steps=3, max_steps=1)
    assert settle_for(unnamed, on_cpu).log_every_steps == 1
    assert settle_for(unnamed, on_gpu).log_every_steps == 10
    assert settle_for(named, on_cpu) == settle_for(named, on_gpu) == named
