"""Settings of the `optim`, `trainer` and `logger` groups."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.settings import setting


@dataclass(kw_only=True)
class OptimSettings:
    lr: float = setting(low=0.0)
    """Peak learning rate."""
    betas: list[float] = setting([0.9, 0.95])
    """AdamW's two decay rates."""
    weight_decay: float = setting(0.1, low=0.0)
    """Decoupled decay of matrices; norms are never decayed, routers and experts are."""
    schedule: str = setting("cosine", choices=["cosine", "wsd", "constant"])
    """After the warm-up: a half cosine, stable and then a linear decay (WSD), or constant."""
    warmup_frac: float = setting(0.05, low=0.0, high=1.0)
    """Share of `trainer.max_steps` over which the rate rises linearly."""
    decay_frac: float = setting(0.2, low=0.0, high=1.0)
    """Share of `trainer.max_steps` that WSD decays over, at the end."""
    min_lr_frac: float = setting(0.1, low=0.0, high=1.0)
    """Final learning rate as a share of the peak."""


@dataclass(kw_only=True)
class TrainerSettings:
    accelerator: str = setting("auto", choices=["auto", "cpu", "cuda"])
    """`auto` takes a GPU if there is one."""
    devices: int = setting(1, low=1)
    """Processes: one per GPU, or that many on the CPU."""
    num_nodes: int = setting(1, low=1)
    """Machines, `devices` on each."""
    strategy: str = setting("single", choices=["single", "ddp", "fsdp"])
    """One process, replicated (DDP), or sharded parameters (FSDP2)."""
    precision: str = setting("auto", choices=["auto", "32-true", "bf16-mixed"])
    """`auto`: bf16-mixed on a GPU or processor that multiplies bf16 in hardware (AMX, AVX-512 BF16), else fp32."""
    autotune: bool = setting(True)
    """Measure at the first start which kernels are fastest for these shapes on this machine, and remember it; false
    takes the defaults."""
    max_steps: int = setting(low=1)
    """Optimizer steps of the run; every schedule follows it."""
    accumulate_grad_batches: int = setting(1, low=1)
    """Micro-batches per optimizer step; divides `data.batch_size`."""
    gradient_clip: float = setting(1.0, low=0.0)
    """Largest gradient norm; 0 does not clip."""
    eval_every_steps: int = setting(50, low=1)
    """Optimizer steps between evaluations."""
    checkpoint_every_steps: int = setting(50, low=1)
    """Optimizer steps between refreshes of `checkpoints/last.ckpt`."""
    keep_every_steps: int | None = setting(None, low=1)
    """Also keep a checkpoint every so many steps; null keeps only the last and the best."""
    log_every_steps: int | None = setting(None, low=1)
    """Optimizer steps between logged rows, each one transfer from the device; null: 1 on a CPU, 10 on a GPU."""
    abort_idle_steps: int | None = setting(None, low=1)
    """Stop the run when an expert got no token for so many optimizer steps; null never does."""


@dataclass(kw_only=True)
class LoggerSettings:
    tensorboard: bool = setting(False)
    """Also write TensorBoard event files."""
    wandb: bool = setting(False)
    """Also log to Weights & Biases; offline by itself where there is no login."""
    project: str = setting("chronomoe")
    """W&B project."""
    group: str | None = setting(None)
    """W&B group, to gather the runs of a study."""
    pictures_every_steps: int = setting(100, low=1)
    """Optimizer steps between routing pictures (heat maps, histograms) sent to TensorBoard and W&B."""
