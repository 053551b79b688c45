"""Run directories of models that no training made: a config, a tokenizer, a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chronomoe.config import compose_config, write_yaml
from chronomoe.data.tokenizer import save_tokenizer, train_tokenizer
from chronomoe.model.lm import LanguageModel
from chronomoe.tensor_file import save_tensors

SIZES = {
    "num_layers": 2, "num_experts": 4, "dim": 32, "hidden_dim": 24, "num_heads": 4, "num_kv_heads": 2,
    "vocab_size": 320, "max_seq_len": 96, "init_std": 0.3,
}  # fmt: skip
TINY = [*(f"model.{name}={value}" for name, value in SIZES.items()), "data.seq_len=32", "data.vocab_size=300"]
TEXT = ["the router sends every token to an expert.", "a quiet field weighs the signal, déjà vu 🕰\n"] * 4


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXT, 300), folder)
    return folder


@pytest.fixture
def saved_run(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """saved_run("model.num_layers=3", field=1.0): a run of random weights; `field` is the size of its random field."""

    def make(
        *overrides: str, field: float = 0.0, dtype: torch.dtype = torch.float32, into: str = "run", seed: int = 0
    ) -> Path:
        config = compose_config([*TINY, *overrides])
        torch.manual_seed(seed)
        model = LanguageModel(config.model, config.router, config.chrono.actuation).to(dtype)
        model.expert_bias_LE.normal_().mul_(field)
        model.log_temperature_LE.normal_().mul_(field / 2)
        folder = tmp_path / into
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "tokenizer").mkdir()
        for file in tokenizer_folder.iterdir():
            (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
        state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        save_tensors({"state_dict": state, "global_step": 3}, folder / "checkpoints" / "best.ckpt")
        (folder / "config.yaml").write_text(write_yaml(dataclasses.replace(config, seed=seed)))
        return folder

    return make


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
