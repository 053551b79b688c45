"""A Hugging Face folder read into chronomoe's settings and weights, and written as a run that can be loaded.

Read are transformers' Mixtral, in both layouts (mixtral.py), and chronomoe's own packages (package.py), whose code is
not executed: only their settings and weights are taken.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from chronomoe.config import TrainConfig, check_range, check_together, compose_config, walk, write_yaml
from chronomoe.data.hub import hub_access
from chronomoe.data.tokenizer import check_vocabulary, load_tokenizer
from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.pretrained.field import read_field
from chronomoe.pretrained.mixtral import APART, FusedExperts, from_mixtral, split_experts, to_mixtral
from chronomoe.pretrained.mixtral_settings import read_mixtral_config
from chronomoe.pretrained.shards import Shards, check_shapes, read_object
from chronomoe.settings import InputError
from chronomoe.tensor_file import save_tensors

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
WEIGHTS = ("model*.safetensors", "*.json", "chat_template.jinja")
"""What is fetched of a hub repository."""
ROUTED = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Where configurations of transformers say how many experts there are."""


class Source(NamedTuple):
    """A folder whose settings, headers and tokenizer are read and fit together; its weights are still on the disk."""

    folder: Path
    config: TrainConfig
    shards: Shards

    def state(self) -> dict[str, Tensor]:
        """Every weight and buffer of the LanguageModel, in the dtype of the folder; the field in fp32."""
        model = self.config.model
        if read_object(self.folder / "config.json")["model_type"] == "chronomoe":
            state = {name.removeprefix("model."): self.shards[name] for name in self.shards}
        else:
            apart = any(APART in name for name in self.shards)
            state = from_mixtral(FusedExperts(self.shards, model.num_experts) if apart else self.shards, model)
            state |= read_field(self.folder, model)[0]
        if model.tie_embeddings:
            state["head.weight"] = state["embedding.weight"]
        return state


def find_folder(source: str) -> Path:
    """`source` itself, or the local copy of the hub repository of that name."""
    if Path(source).is_dir():
        return Path(source)
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise InputError(f"source={source}: there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        with hub_access():
            return Path(snapshot_download(source, allow_patterns=list(WEIGHTS)))
    except Exception as error:  # the client and its transport share no base class
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"source={source} is no folder, and not to be had from the hub ({fault}): give a folder"
        ) from error


def read_source(folder: Path, target: Path) -> Source:
    """Everything that can be refused, checked; `target` is where the tokenizer will lie. Raises InputError."""
    described = read_object(folder / "config.json")
    model, router, actuation = read_settings(folder, described)
    config = run_config(model, router, actuation, target)
    try:
        for key, value, field in walk(config):
            check_range(key, value, field)
        check_together(config)
        language = load_tokenizer(str(folder))
        check_vocabulary(language.vocab_size, model.vocab_size)
    except InputError as error:
        raise InputError(f"source={folder}: {str(error).removeprefix(f'data.tokenizer={folder}: ')}") from None
    shards = Shards(folder)
    with torch.device("meta"):
        ours = LanguageModel(model, router).state_dict()
    if described["model_type"] == "chronomoe":
        expected = {f"model.{name}": weight for name, weight in ours.items()}
        tied = "model.head.weight"
    else:
        expected, tied = to_mixtral(ours, model), "lm_head.weight"
        expected = split_experts(expected) if any(APART in name for name in shards) else expected
    if model.tie_embeddings and tied not in shards:
        del expected[tied]
    check_shapes(shards, {name: weight.shape for name, weight in expected.items()})
    return Source(folder, config, shards)


def read_settings(folder: Path, described: dict[str, Any]) -> tuple[ModelSettings, RouterSettings, str]:
    kind = described.get("model_type")
    try:
        if kind == "mixtral":
            model, router = read_mixtral_config(described)
            return model, router, read_field(folder, model)[1]
        if kind == "chronomoe":
            model = ModelSettings(**described["model_settings"])
            return model, RouterSettings(**described["router_settings"]), described["actuation"]
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise InputError(f"source={folder}: {str(error).removeprefix(f'source={folder}: ')}") from None
        raise InputError(f"source={folder}: config.json is none of this version ({error})") from None
    name = (described.get("architectures") or [kind])[0]
    if not any(described.get(key) for key in ROUTED):
        raise InputError(f"source={folder} is a dense model ({name}), which has no experts to route: give a Mixtral")
    remote = " (it brings code of its own, which is never run here)" if "auto_map" in described else ""
    raise InputError(f"source={folder}: {name} is not supported{remote}: convert reads Mixtral and its own packages")


def run_config(model: ModelSettings, router: RouterSettings, actuation: str, target: Path) -> TrainConfig:
    """A run of this model on the standard library's text, with its field as it is: the rest are the defaults."""
    base = compose_config(["chrono=off"])
    return dataclasses.replace(
        base,
        model=model,
        router=router,
        chrono=dataclasses.replace(base.chrono, actuation=actuation),
        data=dataclasses.replace(
            base.data,
            tokenizer=str(target.absolute() / "tokenizer"),
            vocab_size=max(model.vocab_size, 257),
            seq_len=min(base.data.seq_len, model.max_seq_len),
        ),
    )


def write_run(source: Source, folder: Path) -> None:
    """What `chronomoe.generate` and `chronomoe.evaluate` read of a run: config, tokenizer, and one checkpoint."""
    (folder / "config.yaml").write_text(write_yaml(source.config), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / "tokenizer" / name)
    (folder / "checkpoints").mkdir()
    bar = tqdm(total=len(source.shards), desc="read", unit="tensor", delay=2, disable=None, leave=False)
    source.shards.on_read = bar.update
    with bar:
        state = {f"model.{name}": tensor for name, tensor in source.state().items()}
    save_tensors({"state_dict": state, "global_step": 0}, folder / "checkpoints" / "best.ckpt")
