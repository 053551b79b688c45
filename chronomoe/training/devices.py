"""Which devices, which precision, which Lightning strategy a run gets; and a clear word when they are not there."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import torch

from chronomoe.model.sizing import Size
from chronomoe.settings import InputError
from chronomoe.training.settings import TrainerSettings


class Hardware(NamedTuple):
    accelerator: str
    """`cpu` or `cuda`."""
    precision: str
    """Lightning's name: `32-true` or `bf16-mixed`."""


def choose_hardware(trainer: TrainerSettings) -> Hardware:
    """Settle `auto`. Raises InputError when the devices asked for do not exist."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if gpus else "cpu"
    if accelerator == "cuda" and not gpus:
        way = "trainer.accelerator=cpu" if trainer.strategy != "single" else "trainer=cpu"
        raise InputError(f"trainer.accelerator=cuda, but there is no GPU here: run it on the CPU with {way}")
    available = gpus if accelerator == "cuda" else processor_cores()
    if trainer.devices > available:
        kind = "GPU(s)" if accelerator == "cuda" else "processor core(s)"
        raise InputError(
            f"trainer.devices={trainer.devices}, but there are {available} {kind}: use at most {available}"
        )
    return Hardware(accelerator, choose_precision(trainer.precision, accelerator))


def processor_cores() -> int:
    """Cores this process may use (macOS cannot say, and has no affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_precision(precision: str, accelerator: str) -> str:
    if precision != "auto":
        return precision
    if accelerator == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def settle_for(trainer: TrainerSettings, hardware: Hardware) -> TrainerSettings:
    """Fill in what depends on the device: on a GPU every logged step costs a wait for it, so fewer are."""
    if trainer.log_every_steps is not None:
        return trainer
    return dataclasses.replace(trainer, log_every_steps=10 if hardware.accelerator == "cuda" else 1)


def check_memory(size: Size, trainer: TrainerSettings, hardware: Hardware) -> None:
    """Refuse a model whose weights, gradients and optimizer state cannot fit, before anything is allocated."""
    shards = trainer.devices * trainer.num_nodes if trainer.strategy == "fsdp" else 1
    needed = size.training_bytes / shards
    if hardware.accelerator == "cuda":
        available = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / trainer.devices
    if needed > available:
        raise InputError(
            f"model: {size} need {needed / 1e9:,.0f} GB per device to train, and one has {available / 1e9:,.0f} GB: "
            f"shard it over at least {-(-size.training_bytes // int(available))} devices (trainer=fsdp "
            f"trainer.devices=… trainer.num_nodes=…) or lower model.num_layers, model.dim or model.num_experts"
        )
