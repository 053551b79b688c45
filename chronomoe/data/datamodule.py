"""Packed blocks as batches: `{"input_ids": [B, S], "targets": [B, S]}`, targets being the inputs one token later."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from chronomoe.data.packing import PackedCorpus
from chronomoe.data.sampler import StepSampler, micro_batch_size, num_blocks
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError


class BlockDataset(Dataset[dict[str, Tensor]]):
    """Indexed by an array of block numbers: a whole micro-batch in one read of the memory map."""

    def __init__(self, corpus: PackedCorpus, split: Literal["train", "val"], seq_len: int) -> None:
        self.corpus = corpus
        self.split = split
        self.seq_len = seq_len

    @property
    def tokens(self) -> np.ndarray:
        return self.corpus.train_tokens if self.split == "train" else self.corpus.val_tokens

    def __len__(self) -> int:
        return num_blocks(len(self.tokens), self.seq_len)

    def __getitem__(self, blocks: np.ndarray) -> dict[str, Tensor]:
        # A plain number comes from the sampler that Lightning puts in place of ours under several devices.
        assert isinstance(blocks, np.ndarray), "make the Trainer with use_distributed_sampler=False"
        offsets = blocks[:, None] * self.seq_len + np.arange(self.seq_len + 1)
        tokens = torch.from_numpy(self.tokens[offsets].astype(np.int64))  # [B, S + 1]
        return {"input_ids": tokens[:, :-1].contiguous(), "targets": tokens[:, 1:].contiguous()}


class StatelessLoader(DataLoader):
    """Tells Lightning that it can resume in the middle of an epoch. It has nothing to save: `StepSampler` is made with
    the step to start from, and the order is a function of the seed."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class LanguageDataModule(LightningDataModule):
    """Serves the run from the trainer's current step on, so a resumed run reads what the stopped one would have read.

    An optimizer step reads `settings.batch_size` sequences, over all devices and `accumulate_grad_batches`
    micro-batches of each. Without a trainer it serves a single device from step 0. The Trainer needs
    `use_distributed_sampler=False`.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        corpus: PackedCorpus,
        seed: int,
        max_steps: int,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.corpus = corpus
        self.seed = seed
        self.max_steps = max_steps
        self.accumulate_grad_batches = accumulate_grad_batches

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from; the position follows from the step."""
        return self.corpus.order(self.settings, self.seed)

    def train_dataloader(self) -> DataLoader:
        dataset = BlockDataset(self.corpus, "train", self.settings.seq_len)
        return self._loader(dataset, self._sampler(dataset, self.trainer.global_step if self.trainer else 0))

    def micro_batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """This rank's micro-batches of optimizer step `step` (from 0), read without disturbing the loader."""
        dataset = BlockDataset(self.corpus, "train", self.settings.seq_len)
        return (dataset[blocks] for blocks in islice(self._sampler(dataset, step), self.accumulate_grad_batches))

    def _sampler(self, dataset: BlockDataset, start_step: int) -> StepSampler:
        rank, world = self._rank_and_world()
        return StepSampler(
            num_blocks=len(dataset),
            batch_size=self.settings.batch_size,
            seed=self.seed,
            max_steps=self.max_steps,
            start_step=start_step,
            rank=rank,
            world=world,
            accumulate=self.accumulate_grad_batches,
        )

    def val_dataloader(self) -> DataLoader:
        """`val_sequences` blocks, evenly spaced over the validation split and the same at every call."""
        dataset = BlockDataset(self.corpus, "val", self.settings.seq_len)
        rank, world = self._rank_and_world()
        count = self.settings.val_sequences
        if count % world:
            raise InputError(
                f"data.val_sequences={count} cannot be dealt to {world} devices: "
                f"set data.val_sequences={max(1, count // world) * world}"
            )
        blocks = (np.arange(count) * len(dataset) // count)[rank::world]
        size = micro_batch_size(self.settings.batch_size, world, self.accumulate_grad_batches)
        return self._loader(dataset, [blocks[start : start + size] for start in range(0, len(blocks), size)])

    def _rank_and_world(self) -> tuple[int, int]:
        """Of the data-parallel group: devices that share one model replica read the same batches."""
        replicas = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (replicas["rank"], replicas["num_replicas"]) if replicas else (0, 1)

    def _loader(self, dataset: BlockDataset, sampler: Any) -> DataLoader:
        return StatelessLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole micro-batches
            num_workers=self.settings.num_workers,
            persistent_workers=self.settings.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )
