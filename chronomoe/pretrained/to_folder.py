"""A run written as a folder that transformers loads: its Mixtral, or a package that brings chronomoe's code along.

| form | loaded by | the controller's field |
|---|---|---|
| mixtral | `MixtralForCausalLM`, and everything that knows Mixtral | beside it, without effect (field.py) |
| package | `AutoModelForCausalLM.from_pretrained(…, trust_remote_code=True)` | acts as in training |
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronomoe.chrono.checks import check_decoding
from chronomoe.config import TrainConfig, load_config
from chronomoe.data.tokenizer import LanguageTokenizer, load_tokenizer
from chronomoe.generate import checkpoint_file
from chronomoe.model.lm import LanguageModel
from chronomoe.pretrained.field import describe, is_neutral, measure_effect, write_field
from chronomoe.pretrained.from_folder import TOKENIZER_FILES
from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral
from chronomoe.pretrained.mixtral_settings import no_mixtral
from chronomoe.pretrained.package import AUTO_MAP, write_sources
from chronomoe.pretrained.shards import read_object
from chronomoe.settings import InputError, RunFailed
from chronomoe.training.resuming import read_checkpoint
from chronomoe.whole_file import write_json


class Run(NamedTuple):
    directory: Path
    config: TrainConfig
    model: LanguageModel
    """In eval mode, its weights in the checkpoint's own dtype."""
    language: LanguageTokenizer

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.model.state_dict().values())


def read_run(directory: Path, checkpoint: str) -> Run:
    """Raises InputError for a run that is incomplete, or whose routing no exported model could have."""
    config = load_config(directory / "config.yaml")
    check_decoding(config.chrono)
    if config.router.kind == "expert_choice" and not config.router.causal:
        raise InputError(f"source={directory}: router.causal=false looks at later tokens and has no rule for decoding")
    saved = read_checkpoint(checkpoint_file(directory, checkpoint), mmap=True, key="source")
    with torch.device("meta"):
        model = LanguageModel(config.model, config.router, config.chrono.actuation)
    state = {name.removeprefix("model."): tensor for name, tensor in saved["state_dict"].items()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError:
        raise InputError(f"source={directory}: the checkpoint is not of the model of config.yaml") from None
    return Run(directory, config, model.eval(), load_tokenizer(str(directory / "tokenizer")))


def choose_form(config: TrainConfig, wanted: str) -> str:
    """`auto` is a Mixtral where the model is one. Raises InputError if a Mixtral is wanted and it is none."""
    obstacle = no_mixtral(config.model, config.router)
    if wanted == "mixtral" and obstacle:
        raise InputError(f"form=mixtral: transformers' Mixtral has no {obstacle}: use form=package")
    if wanted == "auto":
        return "package" if obstacle else "mixtral"
    return wanted


def write_mixtral(run: Run, folder: Path, *, layout: str, max_shard_size: str) -> str:
    """Returns one line on what became of the field."""
    from transformers import MixtralForCausalLM

    config = run.config
    with torch.device("meta"):
        theirs = MixtralForCausalLM(mixtral_config(config.model, config.router))
    state = {name: whole(weight) for name, weight in to_mixtral(run.model.state_dict(), config.model).items()}
    theirs.load_state_dict(state, assign=True)
    save(theirs, run, folder, max_shard_size, save_original_format=layout == "v4")
    described = read_object(folder / "config.json")
    old_names = {"rope_theta": config.model.rope_theta, "torch_dtype": described["dtype"]}
    write_json(folder / "config.json", described | old_names)  # transformers 4 would take its default for the new ones
    effect = None if is_neutral(run.model) else measure_effect(run.model, run.language.eos_id)
    write_field(folder, run.model, config.chrono.actuation, config.chrono.law, effect)
    return describe(effect)


def write_package(run: Run, folder: Path, *, max_shard_size: str) -> str:
    """Returns one line on what became of the field."""
    from chronomoe.pretrained.configuration_chronomoe import ChronomoeConfig
    from chronomoe.pretrained.modeling_chronomoe import ChronomoeForCausalLM

    model, router = (dataclasses.asdict(settings) for settings in (run.config.model, run.config.router))
    config = ChronomoeConfig(model, router, run.config.chrono.actuation, auto_map=AUTO_MAP)
    with torch.device("meta"):
        theirs = ChronomoeForCausalLM(config)
    theirs.load_state_dict({f"model.{name}": weight for name, weight in run.model.state_dict().items()}, assign=True)
    save(theirs, run, folder, max_shard_size)
    write_sources(folder)
    return "the controller's field acts as it did in training; load with trust_remote_code=True"


def whole(weight: Tensor) -> Tensor:
    """A part of another tensor, such as the queries of a fused projection, as one of its own, which safetensors
    needs."""
    return weight.clone() if weight.untyped_storage().nbytes() > weight.nbytes else weight


def save(theirs: Any, run: Run, folder: Path, max_shard_size: str, **layout: bool) -> None:
    """Weights, configuration, generation configuration and tokenizer. Raises RunFailed if the disk refuses."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig
    from transformers.utils import logging

    theirs.tie_weights()
    special = {"bos_token_id": None, "eos_token_id": run.language.eos_id, "pad_token_id": run.language.eos_id}
    theirs.config.update(special)
    theirs.generation_config = GenerationConfig(**special)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        theirs.save_pretrained(folder, max_shard_size=max_shard_size, **layout)
    except SafetensorError as error:
        raise RunFailed(f"could not write {folder}: {str(error).splitlines()[0]}") from error
    finally:
        logging.enable_progress_bar()
    save_tokenizer(run, folder)


def save_tokenizer(run: Run, folder: Path) -> None:
    """The run's own files; padding is what ends a document, unless they say otherwise, and stands on the left, behind
    which a batch of prompts is continued."""
    for name in TOKENIZER_FILES:
        if (run.directory / "tokenizer" / name).is_file():
            shutil.copyfile(run.directory / "tokenizer" / name, folder / name)
    path = folder / "tokenizer_config.json"
    config = read_object(path) if path.exists() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    eos_token = run.language.eos_token
    config = {"padding_side": "left", "pad_token": eos_token, "eos_token": eos_token} | config
    write_json(path, config | {"model_max_length": run.config.model.max_seq_len})
