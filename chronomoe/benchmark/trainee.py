"""One system in its process: built, compared with the reference logits, then trained as many steps as it is asked for.

A step: forward and losses (under autocast where the system is bf16), backward, clip, controller, AdamW. The same for
every system.
"""

from __future__ import annotations

import importlib
import time
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.benchmark import memory
from chronomoe.benchmark.breakdown import profile_parts
from chronomoe.benchmark.job import Job, paired_order
from chronomoe.benchmark.parts import part
from chronomoe.benchmark.synchronisation import host_synchronisations
from chronomoe.benchmark.systems import System

LOGIT_TOLERANCE = 1e-4
LAST_PAIRED_STEPS = 10
FETCH_EVERY_STEPS = {"cpu": 1, "cuda": 10}
"""Metrics are brought to the host as often as training logs a row by default."""


class Timing(NamedTuple):
    """One system's share of a repeat, per step."""

    seconds: float
    cpu_seconds: float
    """Of all threads of the process."""
    control_seconds: float
    """Controller and metrics, within `seconds`; on a GPU the time to launch them."""


class Report(NamedTuple):
    peak_memory_bytes: int | None
    peak_memory_above_imports_bytes: int | None
    """Above what the process held right before the model was built."""
    logit_difference: float | None
    """Largest absolute one, in fp32 on the initial weights; None for another function."""
    loss: float
    """Cross-entropy of the last step, nats per token."""
    note: str


class Trainee:
    def __init__(self, system: System, job: Job) -> None:
        torch.set_num_threads(job.threads)
        torch.manual_seed(job.config.seed)
        build = importlib.import_module(f"chronomoe.benchmark.{system.adapter}").build
        self.system, self.device, self.clip = system, torch.device(job.device), job.config.trainer.gradient_clip
        data = torch.load(job.data, mmap=True, weights_only=True)
        self.batch_BS, self.paired_NBS = (data[name].to(self.device) for name in ("batch_BS", "paired_NBS"))
        self.held_before = memory.held(self.device)
        self.learner = build(system, job.config, self.batch_BS, data.get("weights"))
        self.logit_difference = self.compare(data["logits_BSV"]) if "logits_BSV" in data else None
        del data
        memory.reset_peak(self.device)  # comparing logits is no part of training
        self.learner.module.train()
        self.loss = torch.zeros(())
        self.taken, self.control_seconds = 0, 0.0

    def compare(self, expected_BSV: Tensor) -> float | None:
        """Of the batch's first sequences and tokens, as many as the reference has; one by one, so that no step of
        training takes less memory than this. Raises RuntimeError for a system that computes something else."""
        if not self.system.same_function:
            return None
        self.learner.module.eval()
        differences = []
        ids_BS = self.batch_BS[: expected_BSV.shape[0], : expected_BSV.shape[1]]
        with torch.no_grad():
            for ids_1S, expected_1SV in zip(ids_BS.split(1), expected_BSV.split(1), strict=True):
                found_1SV = self.learner.logits(ids_1S).float().cpu()
                differences.append((found_1SV - expected_1SV).abs().max())
        difference = torch.stack(differences).max().item()  # NaN if one is
        if not difference <= LOGIT_TOLERANCE:
            raise RuntimeError(f"its logits differ from the reference by {difference:.1e}: nothing to compare")
        return difference

    def step(self, batch_BS: Tensor, *, fetch: bool | None = None) -> None:
        """One optimizer step. `fetch`: whether metrics go to the host; None as often as training does it."""
        learner = self.learner
        if fetch is None:
            fetch = self.taken % FETCH_EVERY_STEPS[self.device.type] == 0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.system.dtype == "bf16"):
            losses = learner.losses(batch_BS[:, :-1], batch_BS[:, 1:])
        losses.total.backward()
        with part("optimizer"):
            learner.clip(self.clip or float("inf"))
        if learner.control is not None:
            started = time.perf_counter()
            with part("control"):
                learner.control(fetch)
            self.control_seconds += time.perf_counter() - started
        with part("optimizer"):
            learner.optimizer.step()
            learner.optimizer.zero_grad()
        self.loss = losses.cross_entropy.detach()
        self.taken += 1

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, steps: int) -> Timing:
        self.synchronise()
        self.control_seconds = 0.0
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step(self.batch_BS)
        self.synchronise()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        return Timing(seconds / steps, cpu_seconds / steps, self.control_seconds / steps)

    def report(self) -> Report:
        peak = memory.peak(self.device)
        above = None if peak is None or self.held_before is None else peak - self.held_before
        return Report(peak, above, self.logit_difference, self.loss.item(), self.learner.note)

    def paired(self, steps: int) -> float:
        """Mean cross-entropy of the last steps of a fixed sequence of batches."""
        losses = []
        for index in paired_order(steps):
            self.step(self.paired_NBS[index])
            losses.append(self.loss)
        return torch.stack(losses[-LAST_PAIRED_STEPS:]).mean().item()

    def breakdown(self, steps: int) -> dict[str, float]:
        return profile_parts(self.learner.module, lambda: self.step(self.batch_BS), steps, self.device.type)

    def synchronisations(self) -> dict[str, int]:
        """Of a step between two logged ones."""
        return host_synchronisations(lambda: self.step(self.batch_BS, fetch=False))
