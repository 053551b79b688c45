"""`summary.json`: what a run came to, in numbers other programs may rely on; and the table a person sees at the end.

| key | meaning |
|---|---|
| status, error | `done`, `failed` or `stopped`; the reason in one line |
| steps, tokens | optimizer steps and tokens trained on |
| val_loss, val_perplexity, unigram_perplexity | of the last evaluation; the context-free model's on the same tokens |
| max_vio_early, max_vio_late | MaxVio per step, mean over layers: over the first third, and over the last 50 steps |
| load_entropy, dead_expert_frac | at the last logged step |
| val_max_vio, val_load_entropy, val_token_entropy, val_dead_expert_frac | routing of the last evaluation |
| expert_information | mutual information of token and expert there, nats |
| tokens_per_sec, wall_seconds | evaluation left out; from the start of the run, the corpus being ready, to its end |
| num_params, num_active_params | stored, and acting on one token |
| config_hash, versions, git_revision | what was run |
"""

from __future__ import annotations

import math
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chronomoe.config import TrainConfig, config_hash
from chronomoe.data.packing import PackedCorpus
from chronomoe.data.settings import DataSettings
from chronomoe.model.sizing import size_of
from chronomoe.settings import InputError, RunFailed, Stopped
from chronomoe.whole_file import write_json

if TYPE_CHECKING:
    from chronomoe.assembly import Parts

LATE_STEPS = 50
MEASURED = (
    *("steps", "tokens", "val_loss", "val_perplexity", "unigram_perplexity", "max_vio_early", "max_vio_late"),
    *("load_entropy", "dead_expert_frac", "val_max_vio", "val_load_entropy", "val_token_entropy"),
    *("expert_information", "val_dead_expert_frac", "tokens_per_sec"),
)
"""What only a finished run can say; null in the summary of any other."""


def finished_summary(config: TrainConfig, parts: Parts, corpus: PackedCorpus, wall_seconds: float) -> dict[str, Any]:
    telemetry = parts.telemetry
    latest = {name: value for name, value in telemetry.latest.items() if not math.isnan(value)}  # JSON knows no NaN
    steps = parts.trainer.global_step
    tokens_per_step = telemetry.tokens_per_step
    early, late = balance_over_time(parts.chronovisor.max_vio_history[:steps]) if parts.chronovisor else (None, None)
    seconds = telemetry.training_seconds
    return identity(config) | {
        "status": "done",
        "error": None,
        "steps": steps,
        "tokens": steps * tokens_per_step,
        "val_loss": latest.get("val/loss"),
        "val_perplexity": latest.get("val/perplexity"),
        "unigram_perplexity": unigram_perplexity(corpus, config.data),
        "max_vio_early": early,
        "max_vio_late": late,
        "load_entropy": latest.get("router/load_entropy"),
        "dead_expert_frac": latest.get("router/dead_expert_frac"),
        "val_max_vio": latest.get("val/max_vio"),
        "val_load_entropy": latest.get("val/load_entropy"),
        "val_token_entropy": latest.get("val/token_entropy"),
        "expert_information": latest.get("val/expert_information"),
        "val_dead_expert_frac": latest.get("val/dead_expert_frac"),
        "tokens_per_sec": telemetry.training_steps * tokens_per_step / seconds if seconds else None,
        "wall_seconds": wall_seconds,
    }


def failure_summary(config: TrainConfig, error: BaseException, wall_seconds: float) -> dict[str, Any]:
    stopped = isinstance(error, (KeyboardInterrupt, Stopped))
    reason = "stopped by the user; go on with ckpt_path=last" if stopped else f"{type(error).__name__}: {error}"
    if isinstance(error, (InputError, RunFailed)):
        reason = str(error)
    status = "stopped" if stopped else "failed"
    unknown = dict.fromkeys(MEASURED)
    return (
        identity(config) | unknown | {"status": status, "error": reason.splitlines()[0], "wall_seconds": wall_seconds}
    )


def identity(config: TrainConfig) -> dict[str, Any]:
    size = size_of(config.model, config.router)
    return {
        "config_hash": config_hash(config),
        "num_params": size.stored,
        "num_active_params": size.active,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("chronomoe", "torch", "lightning")},
        "git_revision": git_revision(),
    }


def git_revision() -> str | None:
    """The commit this code is at, with `+` if the tree differs from it; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty else "")


def balance_over_time(max_vio_history: torch.Tensor) -> tuple[float | None, float | None]:
    """Mean MaxVio over the first third of the steps and over the last `LATE_STEPS`; None if nothing was seen."""
    history = max_vio_history[~max_vio_history.isnan()].cpu()
    if not len(history):
        return None, None
    return history[: max(1, len(history) // 3)].mean().item(), history[-LATE_STEPS:].mean().item()


def unigram_perplexity(corpus: PackedCorpus, data: DataSettings) -> float:
    """exp of the mean surprise, under the training split's token frequencies, of the very tokens evaluated on."""
    from chronomoe.data.datamodule import LanguageDataModule  # brings Lightning along

    log_probs = corpus.unigram_log_probs()
    batches = LanguageDataModule(data, corpus=corpus, seed=0, max_steps=1).val_dataloader()  # all ranks' share
    targets = np.concatenate([batch["targets"].numpy().ravel() for batch in batches])
    return math.exp(-float(log_probs[targets].mean(dtype=np.float64)))


def write_summary(run_dir: Path, numbers: dict[str, Any]) -> None:
    write_json(run_dir / "summary.json", numbers)


def table(numbers: dict[str, Any], run_dir: Path, sync_line: str | None) -> str:
    """The end of a run on a screen."""

    def show(key: str, form: str) -> str:
        return "-" if numbers[key] is None else format(numbers[key], form)

    rows = [
        ("validation loss", f"{show('val_loss', '.4f')} nats per token"),
        ("perplexity", f"{show('val_perplexity', '.1f')}   (unigram model {show('unigram_perplexity', '.1f')})"),
        ("MaxVio", f"{show('max_vio_early', '.2f')} in the first third, {show('max_vio_late', '.2f')} at the end"),
        ("load entropy", show("load_entropy", ".4f")),
        ("dead experts", show("dead_expert_frac", ".0%")),
        (
            "trained",
            f"{numbers['steps']:,} steps, {numbers['tokens']:,} tokens, {show('tokens_per_sec', ',.0f')} tokens/s",
        ),
        ("wall time", f"{numbers['wall_seconds']:.0f} s"),
        ("results", str(run_dir)),
        ("report", str(run_dir / "report.html")),
    ]
    if sync_line:
        rows.append(("sync to W&B", sync_line))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
