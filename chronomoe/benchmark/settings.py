"""Settings of the two benchmark commands."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.settings import setting


@dataclass(kw_only=True)
class TimingSettings:
    """What is timed, and how often: both commands have these."""

    model: str = setting("mixtral_4x16")
    """Which `configs/model` to measure, or to begin from."""
    overrides: list[str] = setting(["model.vocab_size=8192"])
    """Further overrides of the config, as `python train.py` takes them; a list given here replaces this one."""
    batch_size: int = setting(8, low=1)
    """Sequences of a step; scaling varies them where it varies tokens."""
    seq_len: int = setting(256, low=2)
    """Tokens of a sequence."""
    repeats: int = setting(5, low=1)
    """Interleaved repeats; medians and ranges are over these, and fewer than five say little."""
    steps: int = setting(4, low=1)
    """Optimizer steps timed in one repeat."""
    warmup_steps: int = setting(2, low=0)
    """Optimizer steps before the first repeat, not timed."""
    threads: int | None = setting(None, low=1)
    """Threads of every process; null: as many as torch takes by itself."""


@dataclass(kw_only=True)
class BenchmarkSettings(TimingSettings):
    systems: list[str] = setting([])
    """What to measure: keys, or how they begin (`chronomoe`, `litgpt_fp32`); empty: all that is installed."""
    paired_steps: int = setting(0, low=0)
    """Steps after the timing on a fixed sequence of batches, the same for all, to compare losses; 0 takes none."""
    breakdown_steps: int = setting(2, low=0)
    """Profiled steps of our own model, for where its time goes; 0 profiles none."""
    output: str = setting("outputs/benchmark")
    """Folder of benchmark.json, benchmark.png and breakdown.png."""


@dataclass(kw_only=True)
class ScalingSettings(TimingSettings):
    experts: list[int] = setting([8, 16, 32, 64])
    """Numbers of experts per layer, each as wide and as many per token: equal active parameters. The first is the
    reference; empty leaves this part out."""
    tokens: list[int] = setting([512, 1024, 2048, 4096])
    """Tokens per step, whole sequences; the first is the reference; empty leaves this part out."""
    dtype: str = setting("fp32", choices=["fp32", "bf16"])
    """fp32, or bf16 by autocast."""
    output: str = setting("outputs/scaling")
    """Folder of scaling.json and scaling.png."""
