"""A run's side of TensorBoard: its scalars by step and by tokens, its settings and final numbers for the HPARAMS tab,
and a layout for the CUSTOM SCALARS tab.

| tag | what |
|---|---|
| every key of `metrics.csv` | by optimizer step |
| `tokens/…` | those of `TOKENS_AXIS`, by tokens trained on: the step of these is the number of tokens |
| `summary/…` | the numbers of `summary.json` of a run that is done |
| HPARAMS | every setting that is set, under its dotted key |

No run declares what the experiment is (`_hparams_/experiment`): TensorBoard would take one run's word for all, and runs
under different laws have different settings. Without it, it gathers the settings of all runs, and which of them differ.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from chronomoe.training.launch import is_first_process

TOKENS_AXIS = {
    "train/loss": "tokens/train_loss",
    "val/loss": "tokens/val_loss",
    "router/max_vio": "tokens/max_vio",
    "val/max_vio": "tokens/val_max_vio",
}

CHARTS = {
    "loss": {"by step": ["train/loss", "val/loss"], "by tokens": ["tokens/train_loss", "tokens/val_loss"]},
    "balance": {
        "MaxVio": ["router/max_vio", "router/max_vio_worst", "val/max_vio"],
        "load entropy": ["router/load_entropy"],
        "dead experts": ["router/dead_expert_frac"],
    },
    "control": {
        "field, logits": ["chrono/bias", "chrono/pressure", "chrono/lens"],
        "coherence and gate": ["chrono/coherence", "chrono/gate"],
    },
}
"""Section of the CUSTOM SCALARS tab -> chart -> tags."""


class TensorBoard(TensorBoardLogger):
    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        super().__init__(run_dir, name="", version="tensorboard", default_hp_metric=False)
        if is_first_process():
            self.experiment.add_custom_scalars(layout())
            self._add(session_start(flat_settings(config)))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        by_tokens = {tag: metrics[key] for key, tag in TOKENS_AXIS.items() if key in metrics}
        if by_tokens:
            super().log_metrics(by_tokens, int(metrics["train/tokens"]))

    def end(self, numbers: Mapping[str, Any]) -> None:
        """`numbers` of `summary.json`. A run that failed or was stopped may go on, so nothing is said of it that
        TensorBoard, which keeps the first end it reads, could not take back."""
        if numbers["status"] == "done":
            measured = {f"summary/{key}": value for key, value in numbers.items() if isinstance(value, int | float)}
            super().log_metrics(measured, 0)
            self._add(session_end())
        self.experiment.close()

    def _add(self, record: Any) -> None:
        self.experiment._get_file_writer().add_summary(record)


def layout() -> dict[str, dict[str, list[Any]]]:
    """`CHARTS` as torch takes it. TensorBoard matches tags from their start, so an end keeps longer ones out."""
    return {
        section: {chart: ["Multiline", [f"{tag}$" for tag in tags]] for chart, tags in charts.items()}
        for section, charts in CHARTS.items()
    }


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Dotted key -> value of every setting that is set, lists as text: TensorBoard knows truth, numbers and text."""
    flat: dict[str, bool | float | str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat


def session_start(settings: Mapping[str, bool | float | str]) -> Any:
    """The HPARAMS tab's record of a run that begins."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for key, value in settings.items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        setattr(info.hparams[key], kind, value)
    return record(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def session_end() -> Any:
    """The HPARAMS tab's record of a run that is done."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return record(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def record(tag: str, content: Any) -> Any:
    """A summary without a value; what it says stands in its metadata."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    value = Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
    return Summary(value=[value])
