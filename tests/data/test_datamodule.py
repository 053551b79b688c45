from __future__ import annotations

import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from chronomoe.data.datamodule import BlockDataset, LanguageDataModule
from chronomoe.data.packing import prepare_corpus
from chronomoe.data.sampler import shuffled_index
from chronomoe.settings import InputError


class Reader(lightning.LightningModule):
    """Learns nothing; writes down what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[list[int]]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Replicas:
    """As much of a Trainer as the data module asks for, on rank `rank` of `world`."""

    def __init__(self, rank: int, world: int, global_step: int = 0) -> None:
        self.distributed_sampler_kwargs = {"rank": rank, "num_replicas": world}
        self.global_step = global_step
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})


@pytest.fixture
def module(text_settings):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)

    def make(trainer=None, accumulate=1, **overrides) -> LanguageDataModule:
        made = LanguageDataModule(
            text_settings(**overrides), corpus=corpus, seed=3, max_steps=6, accumulate_grad_batches=accumulate
        )
        made.trainer = trainer
        return made

    return make


def fit(module: LanguageDataModule, folder: Path, ckpt_path: Path | None = None) -> Reader:
    """Train to the last step, from the first or from a checkpoint, leaving a checkpoint of each step in `folder`."""
    trainer = lightning.Trainer(
        max_steps=module.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=module.accumulate_grad_batches,
        accelerator="cpu",
        logger=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    reader = Reader()
    trainer.fit(reader, datamodule=module, ckpt_path=ckpt_path)
    return reader


def test_a_batch_is_blocks_of_the_corpus_and_the_same_one_token_later(module):
    made = module()
    tokens = np.asarray(made.corpus.train_tokens, dtype=np.int64)
    dataset = BlockDataset(made.corpus, "train", 16)
    for step, batch in enumerate(made.train_dataloader()):
        blocks = [shuffled_index(step * 4 + i, len(dataset), 3) for i in range(4)]
        expected = np.stack([tokens[block * 16 : block * 16 + 17] for block in blocks])
        assert batch["input_ids"].tolist() == expected[:, :-1].tolist()
        assert batch["targets"].tolist() == expected[:, 1:].tolist()
        assert all(tensor.is_contiguous() for tensor in batch.values())
    assert step == 5


def test_every_target_of_the_training_split_is_predicted_once_an_epoch(module):
    made = module()
    dataset = BlockDataset(made.corpus, "train", 16)
    targets = dataset[np.arange(len(dataset))]["targets"].flatten()
    assert targets.tolist() == made.corpus.train_tokens[1 : len(dataset) * 16 + 1].tolist()


def test_validation_is_the_same_evenly_spread_blocks_however_it_is_dealt(module):
    def rows(loader):
        return [row for batch in loader for row in batch["input_ids"].tolist()]

    alone = rows(module(val_sequences=6).val_dataloader())
    dealt = [rows(module(Replicas(rank, 2), val_sequences=6).val_dataloader()) for rank in range(2)]
    assert dealt == [alone[::2], alone[1::2]]
    assert len({tuple(row) for row in alone}) == 6


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_trainer_reads_what_the_uninterrupted_one_did(module, tmp_path, accumulate):
    whole = fit(module(accumulate=accumulate), tmp_path / "whole")
    assert len(whole.seen) == 6 * accumulate
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        rest = fit(module(accumulate=accumulate), tmp_path / "rest", tmp_path / "whole" / "step=2.ckpt")
    assert rest.seen == whole.seen[2 * accumulate :]


def test_two_ranks_together_read_the_step_of_one(module):
    [alone, *_] = list(module().train_dataloader())
    ranks = [next(iter(module(Replicas(rank, 2)).train_dataloader())) for rank in range(2)]
    assert torch.cat([batch["input_ids"] for batch in ranks]).tolist() == alone["input_ids"].tolist()


def test_loader_processes_read_the_same_as_the_main_one(module):
    here = [batch["input_ids"].tolist() for batch in module().train_dataloader()]
    assert [batch["input_ids"].tolist() for batch in module(num_workers=1).train_dataloader()] == here


def test_lightnings_own_sampler_is_refused_loudly(module):
    dataset = BlockDataset(module().corpus, "train", 16)
    with pytest.raises(AssertionError, match="use_distributed_sampler=False"):
        dataset[0]


@pytest.mark.parametrize(
    ("overrides", "loader", "message"),
    [
        ({"batch_size": 5}, "train_dataloader", "data.batch_size=5 .* data.batch_size=6"),
        ({"val_sequences": 5}, "val_dataloader", "data.val_sequences=5 .* data.val_sequences=4"),
    ],
)
def test_an_uneven_deal_is_refused_with_the_value_to_set(module, overrides, loader, message):
    with pytest.raises(InputError, match=message):
        getattr(module(Replicas(0, 2), **overrides), loader)()
