"""Putting a run together: module, data, controller, callbacks, loggers and trainer, from one config."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.law import ControlSettings
from chronomoe.config import TrainConfig, config_hash, micro_batch_tokens
from chronomoe.data.datamodule import LanguageDataModule
from chronomoe.data.packing import PackedCorpus
from chronomoe.model.lm import LanguageModel
from chronomoe.study.live import RoutingPictures
from chronomoe.training.autotune import Kernels, Workload, choose_kernels
from chronomoe.training.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from chronomoe.training.devices import Hardware
from chronomoe.training.interruption import StopWhenAsked
from chronomoe.training.loggers import build_loggers
from chronomoe.training.module import LanguageModule
from chronomoe.training.progress import ProgressBar
from chronomoe.training.resuming import read_checkpoint
from chronomoe.training.settings import TrainerSettings
from chronomoe.training.telemetry import Telemetry


class Parts(NamedTuple):
    trainer: L.Trainer
    module: LanguageModule
    data: LanguageDataModule
    chronovisor: ChronovisorCallback | None
    telemetry: Telemetry


def assemble(
    config: TrainConfig, run_dir: Path, model: LanguageModel, corpus: PackedCorpus, hardware: Hardware
) -> Parts:
    settings, tokens_per_step = config.trainer, config.data.batch_size * config.data.seq_len
    chronovisor = None
    if not config.model.dense:
        controller = Chronovisor(config.chrono, config.model.num_layers, config.model.num_experts, config.seed)
        chronovisor = ChronovisorCallback(
            controller, model, max_steps=settings.max_steps, record_path=run_dir / "routing.npz"
        )
    telemetry = Telemetry(settings, chronovisor, tokens_per_step=tokens_per_step)
    checkpoints = run_dir / "checkpoints"
    # Order matters: the controller ticks, telemetry reads it, and only what telemetry found sound is saved.
    callbacks: list[L.Callback] = [chronovisor] if chronovisor else []
    callbacks += [telemetry, ProgressBar(telemetry, settings.max_steps)]
    if chronovisor and (config.logger.tensorboard or config.logger.wandb):
        every_steps = config.logger.pictures_every_steps
        callbacks.append(
            RoutingPictures(settings, chronovisor, run_dir, every_steps=every_steps, tokens_per_step=tokens_per_step)
        )
    callbacks += [*checkpoint_callbacks(checkpoints, settings), StopWhenAsked(settings, checkpoints / "last.ckpt")]
    from_step = read_checkpoint(Path(config.ckpt_path), mmap=True)["global_step"] if config.ckpt_path else 0
    run_id = f"{config_hash(config)}-{hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:6]}"
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=build_strategy(settings, hardware),
        precision=hardware.precision,  # type: ignore[arg-type]
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        val_check_interval=settings.eval_every_steps * settings.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=build_loggers(config.logger, run_dir, dataclasses.asdict(config), run_id=run_id, from_step=from_step),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run_dir,
    )
    module = LanguageModule(model, config.optim, settings, seed=config.seed, end_of_document=corpus.eos_id)
    data = LanguageDataModule(
        config.data,
        corpus=corpus,
        seed=config.seed,
        max_steps=settings.max_steps,
        accumulate_grad_batches=settings.accumulate_grad_batches,
    )
    return Parts(trainer, module, data, chronovisor, telemetry)


def kernels_for(config: TrainConfig, hardware: Hardware) -> Kernels:
    """Those a resumed run was trained with; else the fastest for its micro-batches on the machine it runs on."""
    if config.ckpt_path is not None:
        return Kernels(**read_checkpoint(Path(config.ckpt_path), mmap=True).get("kernels", {}))
    if not config.trainer.autotune:
        return Kernels()
    work = Workload(
        batch=micro_batch_tokens(config) // config.data.seq_len,
        length=config.data.seq_len,
        dtype=torch.bfloat16 if hardware.precision == "bf16-mixed" else torch.float32,
        device=torch.device(hardware.accelerator),
    )
    return choose_kernels(config.model, config.router, work, Path(config.data.cache_dir).expanduser())


def build_strategy(settings: TrainerSettings, hardware: Hardware) -> Strategy | str:
    backend = "gloo" if hardware.accelerator == "cpu" else "nccl"
    if settings.strategy == "ddp":
        # Broadcasting buffers would overwrite every rank's routing counts with the first rank's.
        return DDPStrategy(broadcast_buffers=False, process_group_backend=backend)
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=settings.devices * settings.num_nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
    return "auto"


def set_up(config: TrainConfig, hardware: Hardware) -> str:
    """The line a run begins with: what steers the routing, and what it runs on."""
    chrono, trainer = config.chrono, config.trainer
    control = f"control: {chrono.law}"
    if isinstance(chrono, ControlSettings):
        clocks = chrono.clocks
        control += (
            f" (pressure_scale {chrono.pressure_scale:g}, clocks {clocks.micro_period}/{clocks.macro_period}, "
            f"temperature {chrono.temperature.kind}, actuation {chrono.actuation})"
        )
    where = f"{trainer.devices} x {hardware.accelerator}, {hardware.precision}"
    return f"{control}; {trainer.max_steps} steps of {config.data.batch_size} x {config.data.seq_len} tokens on {where}"
