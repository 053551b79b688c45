"""TensorBoard and W&B: what they were told can be read back, and every job of a multirun is a run of its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from training_runs import Finished, Outcome

Command = Callable[..., Outcome]
PICTURES = ["logger.pictures_every_steps=4"]


def test_tensorboard_holds_every_row_of_the_metrics(train: Callable[..., Finished]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finished = train("logger=tensorboard", "trainer.eval_every_steps=4")
    events = EventAccumulator(str(finished.directory / "tensorboard"))
    events.Reload()
    for name in ("train/loss", "val/loss", "router/max_vio", "chrono/bias"):
        written = {scalar.step: scalar.value for scalar in events.Scalars(name)}
        rows = {int(row["step"]): float(row[name]) for row in finished.rows if row[name]}
        assert written == pytest.approx(rows)


def test_tensorboard_shows_where_tokens_go_under_as_many_keys_for_any_number_of_experts(
    train: Callable[..., Finished],
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = []
    for experts in (4, 8):
        finished = train("logger=tensorboard", *PICTURES, f"model.num_experts={experts}", into=str(experts))
        events = EventAccumulator(str(finished.directory / "tensorboard"))
        events.Reload()
        tags.append({kind: set(events.Tags()[kind]) for kind in ("images", "histograms", "scalars")})
        assert [image.step for image in events.Images("figures/usage")] == [4, 8]
        width = events.Images("figures/layers")[0].width
        assert width > 500
    assert tags[0] == tags[1]
    assert tags[0]["images"] == {"figures/layers", "figures/usage", "figures/control"}
    assert tags[0]["histograms"] == {"distribution/bias", "distribution/lens", "distribution/utilisation"}


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a 7-byte header, then LevelDB's log format (32 KiB blocks of checked fragments)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last fragment
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class WandbRun:
    """What the one offline run below `directory` recorded."""

    def __init__(self, directory: Path) -> None:
        (self.file,) = directory.glob("wandb/offline-run-*/*.wandb")
        self.history: list[dict[str, Any]] = []
        self.exit_code: int | None = None
        self.id = ""
        self.config: dict[str, Any] = {}
        for record in records(self.file):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                self.history.append(
                    {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "run":
                self.id = record.run.run_id
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a login: nothing in the environment, an empty home."""
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path.parent / f"{tmp_path.name}-home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(home))


@pytest.mark.slow
def test_each_job_of_a_multirun_is_a_finished_offline_run_of_wandb(
    command: Command, tiny: list[str], tmp_path: Path, offline: None
) -> None:
    outcome = command("-m", *tiny, "logger=wandb", *PICTURES, "chrono.pressure_scale=0.1,0.5", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.stderr
    runs = [WandbRun(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert runs[0].id != runs[1].id
    for job, run in enumerate(runs):
        finished = Finished(tmp_path / "sweep" / str(job))
        assert run.exit_code == 0
        assert run.config["chrono"]["pressure_scale"] == (0.1, 0.5)[job]
        logged = [row["train/loss"] for row in run.history if "train/loss" in row]
        assert logged == pytest.approx(finished.column("train/loss"))
        assert [row["train/tokens"] for row in run.history if "train/tokens" in row][-1] == 8 * 4 * 32
        assert f"wandb sync {run.file.parent}" in outcome.stdout
        pictures = {key.split("/_")[0]: row[key] for row in run.history for key in row if "figures/" in key}
        assert {"figures/layers", "figures/usage", "figures/control"} <= {
            key.removesuffix("/_type") for key in pictures
        }
        assert any("distribution/bias" in key for row in run.history for key in row)


@pytest.mark.slow
def test_a_failed_run_is_failed_in_wandb_and_a_resumed_one_keeps_its_id(
    command: Command, tiny: list[str], tmp_path: Path, offline: None
) -> None:
    broken = command(*tiny, "logger=wandb", "optim.lr=1e30", "optim.warmup_frac=0", "hydra.run.dir=broken")
    assert broken.code == 1, broken.stderr
    assert WandbRun(tmp_path / "broken").exit_code == 1

    assert command(*tiny, "logger=wandb", "trainer.keep_every_steps=4", "hydra.run.dir=run").code == 0
    first = WandbRun(tmp_path / "run")
    first.file.parent.rename(tmp_path / "first")
    middle = "ckpt_path=run/checkpoints/step_00000004.ckpt"
    assert command(*tiny, "logger=wandb", "trainer.keep_every_steps=4", middle, "hydra.run.dir=run").code == 0
    assert WandbRun(tmp_path / "run").id == first.id
