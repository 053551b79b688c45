"""A run from config to results: check, prepare, train, summarise, draw.

What a run leaves in its directory: `config.yaml`, `tokenizer/`, `metrics.csv`, `routing.npz`, `checkpoints/`,
`summary.json`, `figures/`, `report.html`. A run that fails leaves the same, with its status and error in the
summary; one that is stopped lacks only the pictures, which `python -m chronomoe.report` draws.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from chronomoe.config import TrainConfig, config_hash, load_config, write_yaml
from chronomoe.settings import InputError, RunFailed
from chronomoe.study.run import read_json
from chronomoe.training.launch import is_first_process, launched
from chronomoe.training.lightning_alone import import_lightning
from chronomoe.training.settings import LoggerSettings

BUILT_WHOLE = 4_000_000_000
"""Up to so many parameters (16 GB) every rank of a sharded run builds the whole model before sharding it."""


class Resume(NamedTuple):
    run_dir: Path
    checkpoint: Path


def resume_from(config: TrainConfig, run_dir: str | None) -> Resume | None:
    """Where `ckpt_path=last` leads: to `run_dir` if one was given, else to the newest run of this config in outputs/.

    None if the run starts afresh or from a named checkpoint.
    """
    if config.ckpt_path != "last":
        return None
    if run_dir is not None:
        candidates = [Path(run_dir)]
    else:
        wanted = config_hash(config)
        dated = sorted(Path("outputs").glob("*/*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
        candidates = [path.parent for path in dated if saved_hash(path) == wanted and not is_done(path.parent)]
    for candidate in candidates:
        checkpoint = candidate / "checkpoints" / "last.ckpt"
        if checkpoint.exists():
            return Resume(candidate, checkpoint)
    where = run_dir or f"outputs/ for an unfinished run of this config (hash {config_hash(config)})"
    raise InputError(f"ckpt_path=last: no checkpoints/last.ckpt in {where}; name a file, or leave ckpt_path out")


def saved_hash(config_yaml: Path) -> str | None:
    try:
        return config_hash(load_config(config_yaml))
    except InputError:
        return None  # written by another version


def is_done(run_dir: Path) -> bool:
    return read_json(run_dir / "summary.json").get("status") == "done"


def preflight(config: TrainConfig, run_dir: str | Path, *, quiet: bool = False, here: bool = True) -> None:
    """Everything that can be refused before a run directory exists. Raises InputError; says sizes unless quiet. A run
    that is not for `here`, but for a cluster's machines, needs none of their devices on this one."""
    import torch

    from chronomoe.chrono.controller import Chronovisor
    from chronomoe.data.packing import prepare_corpus
    from chronomoe.model.lm import LanguageModel
    from chronomoe.model.sizing import size_of
    from chronomoe.training.devices import check_memory, choose_hardware
    from chronomoe.training.resuming import check_resumable, check_same_order

    check_writable(Path(run_dir))
    check_unused(config, Path(run_dir))
    check_installed(config.logger)
    size = size_of(config.model, config.router)
    if here:
        check_memory(size, config.trainer, choose_hardware(config.trainer))
    controller = None
    if not config.model.dense:  # also reads what the law starts from, such as another run's record
        controller = Chronovisor(config.chrono, config.model.num_layers, config.model.num_experts)
    if config.ckpt_path is not None:
        with torch.device("meta"):
            model = LanguageModel(config.model, config.router)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        check_resumable(Path(config.ckpt_path), shapes, controller, config.trainer.max_steps)
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=quiet)
    if config.ckpt_path is not None:
        check_same_order(Path(config.ckpt_path), corpus.order(config.data, config.seed))
    if not quiet:
        experts = "dense" if config.model.dense else f"{config.model.num_experts} experts"
        say(f"model: {config.model.num_layers} layers, {experts}: {size}")


def check_unused(config: TrainConfig, run_dir: Path) -> None:
    """A fresh run must not leave its files among another's: its checkpoints would be taken for the new run's."""
    if config.ckpt_path is None and (run_dir / "checkpoints").exists():
        raise InputError(
            f"hydra.run.dir={run_dir} holds a run already: go on with it by ckpt_path=last, or choose another folder"
        )


def check_installed(logger: LoggerSettings) -> None:
    if logger.wandb and find_spec("wandb") is None:
        raise InputError('logger=wandb needs wandb: install it with pip install -e ".[wandb]"')


def check_writable(run_dir: Path, key: str = "hydra.run.dir") -> None:
    there = next(parent for parent in (run_dir.absolute(), *run_dir.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{key}={run_dir}: cannot write in {there} ({error.strerror}); choose another") from None


def run(config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Train and write everything; returns the summary. Also callable without Hydra.

    Raises what ended the run, after the run directory says so: InputError, RunFailed, Stopped or a bug.
    """
    import_lightning()
    from chronomoe.summary import failure_summary, write_summary

    run_dir.mkdir(parents=True, exist_ok=True)
    resume = resume_from(config, str(run_dir))
    if resume is not None:
        config = dataclasses.replace(config, ckpt_path=str(resume.checkpoint))
    if not is_first_process():  # started by torchrun or SLURM beside the one that writes
        return train(config, run_dir, time.perf_counter())
    (run_dir / "config.yaml").write_text(write_yaml(config))
    (run_dir / "summary.json").unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        with launched(run_dir, config.trainer.devices):
            summary = train(config, run_dir, started)
    except BaseException as error:
        with suppress(OSError):  # a full disk may be what ended the run
            if is_done(run_dir):
                raise  # trained and written: only its pictures are missing
            write_summary(run_dir, failure_summary(config, error, time.perf_counter() - started))
            if isinstance(error, RunFailed):
                draw(run_dir)  # what led there is worth seeing; a stopped run is waited for, and goes on
        raise
    return summary


def say(message: str) -> None:
    if is_first_process():
        print(message, file=sys.stderr)


def train(config: TrainConfig, run_dir: Path, started: float) -> dict[str, Any]:
    """One process's part of the training; the first process also writes the results and returns the summary."""
    import_lightning()
    import torch

    from chronomoe import assembly
    from chronomoe.data.packing import prepare_corpus
    from chronomoe.model.lm import LanguageModel
    from chronomoe.summary import failure_summary, finished_summary
    from chronomoe.training.allocator import keep_freed_memory
    from chronomoe.training.devices import choose_hardware, processor_cores, settle_for
    from chronomoe.training.loggers import close_loggers

    quiet_lightning()
    hardware = choose_hardware(config.trainer)
    config = dataclasses.replace(config, trainer=settle_for(config.trainer, hardware))
    if hardware.accelerator == "cpu" and config.trainer.devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, processor_cores() // config.trainer.devices))  # alike on every rank
    if hardware.accelerator == "cpu":
        keep_freed_memory()
    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True)
    torch.manual_seed(config.seed)
    with torch.device(build_device(config)):
        model = LanguageModel(config.model, config.router, config.chrono.actuation)
    if is_first_process():
        shutil.copytree(corpus.directory / "tokenizer", run_dir / "tokenizer", dirs_exist_ok=True)
    parts = assembly.assemble(config, run_dir, model, corpus, hardware)
    parts.module.use_kernels(assembly.kernels_for(config, hardware))
    say(f"{assembly.set_up(config, hardware)}; {parts.module.kernels}")
    if not gc.isenabled():  # a command switches it off until here, where everything is loaded that stays to the end
        gc.freeze()
        gc.enable()
    loggers, objective = parts.trainer.loggers, config.sweep.objectives[0]
    try:
        parts.trainer.fit(parts.module, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
        parts.trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt")
        if not is_first_process():
            return {}
        numbers = finished_summary(config, parts, corpus, time.perf_counter() - started)
    except BaseException as error:
        with suppress(OSError):  # a full disk may be what ended the run
            close_loggers(loggers, failure_summary(config, error, time.perf_counter() - started), objective)
        raise
    return report(run_dir, numbers, sync_line=close_loggers(loggers, numbers, objective))


def build_device(config: TrainConfig) -> str:
    """Where a model is built: on the CPU, so that every strategy starts from the same weights for a seed; or, when it
    is sharded because nobody could hold it whole, on the meta device, to be filled shard by shard."""
    from chronomoe.model.sizing import size_of

    too_large = config.trainer.strategy == "fsdp" and size_of(config.model, config.router).stored > BUILT_WHOLE
    return "meta" if too_large else "cpu"


def report(run_dir: Path, numbers: dict[str, Any], sync_line: str | None) -> dict[str, Any]:
    """Write summary, figures and report of a finished run, and show the summary."""
    from chronomoe import summary

    summary.write_summary(run_dir, numbers)
    try:
        draw(run_dir)
    except OSError as error:  # the run itself is done and written
        say(f"warning: no figures or report ({error}); draw them with python -m chronomoe.report run={run_dir}")
    print(summary.table(numbers, run_dir, sync_line))
    return numbers


def draw(run_dir: Path) -> None:
    """Figures and report, from what the run has on disk."""
    from chronomoe.study.figures import draw_run
    from chronomoe.study.report import write_report
    from chronomoe.study.run import Run

    written = Run.load(run_dir)
    draw_run(written)
    write_report(written)


def quiet_lightning() -> None:
    """Lightning's tips and device banners say nothing that the set-up line does not."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
