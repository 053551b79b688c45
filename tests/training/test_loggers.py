"""TensorBoard and W&B: what they were told can be read back, and every job of a multirun is a run of its own."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from training_runs import Finished, Outcome
from wandb_file import WandbRun

from chronomoe.settings import RunFailed
from chronomoe.training.wandb_run import LONGEST_NAME, end_wandb, run_name

Command = Callable[..., Outcome]
PICTURES = ["logger.pictures_every_steps=4"]


def read_events(finished: Finished) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.directory / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def scalars(events: Any, tag: str) -> dict[int, float]:
    return {scalar.step: scalar.value for scalar in events.Scalars(tag)}


def all_rows(finished: Finished) -> list[dict[str, float]]:
    """The filled cells of every row of `metrics.csv`, those that depend on the clock included."""
    with (finished.directory / "metrics.csv").open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_tensorboard_holds_every_key_of_the_metrics_by_step_and_the_losses_by_tokens(
    train: Callable[..., Finished],
) -> None:
    finished = train("logger=tensorboard", "trainer.eval_every_steps=4", "chrono.phi=true")
    events, rows = read_events(finished), all_rows(finished)
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        expected = {int(row["step"]): row[key] for row in rows if key in row}
        assert scalars(events, key) == pytest.approx(expected, nan_ok=True), key
    for key, tag in {"train/loss": "tokens/train_loss", "val/loss": "tokens/val_loss"}.items():
        expected = {int(row["step"]) * 4 * 32: row[key] for row in rows if key in row}
        assert scalars(events, tag) == pytest.approx(expected)


def test_tensorboard_compares_runs_by_their_settings_and_final_numbers(
    train: Callable[..., Finished], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    train("logger=tensorboard", "chrono.gamma=0.3", into="gamma")
    train("logger=tensorboard", "chrono=off", "seed=3", into="off")
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    provider = MultiplexerDataProvider(runs, str(tmp_path))
    backend, ctx = backend_context.Context(TBContext(data_provider=provider)), RequestContext()
    found = backend.hparams_metadata(ctx, ""), backend.hparams_from_data_provider(ctx, "", limit=None)
    experiment = backend.experiment_from_metadata(ctx, "", True, *found)
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert {"chrono.law", "seed"} <= differing
    assert "chrono.gamma" in {info.name for info in experiment.hparam_infos}  # only one of the laws has it
    assert {"train/loss", "summary/val_loss"} <= {info.name.tag for info in experiment.metric_infos}
    wanted = api_pb2.ListSessionGroupsRequest(
        slice_size=9,
        start_index=0,
        allowed_statuses=[api_pb2.STATUS_SUCCESS],
        include_metrics=True,
        col_params=[api_pb2.ColParams(hparam="chrono.law", filter_regexp="^off$")],
    )
    (group,) = list_session_groups.Handler(ctx, backend, "", wanted).run().session_groups
    values = {value.name.tag: value.value for value in group.metric_values}
    summary = Finished(tmp_path / "off").summary
    assert values["summary/val_loss"] == pytest.approx(summary["val_loss"])
    assert values["summary/max_vio_late"] == pytest.approx(summary["max_vio_late"])
    assert group.hparams["seed"].number_value == 3
    assert group.hparams["optim.betas"].string_value == "[0.9, 0.95]"


def test_tensorboards_charts_each_show_the_scalars_they_name(train: Callable[..., Finished]) -> None:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    events = read_events(train("logger=tensorboard"))
    (laid_out,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(laid_out.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["loss", "balance", "control"]
    patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    for pattern in patterns:
        assert [tag for tag in events.Tags()["scalars"] if re.match(pattern, tag)] == [pattern.removesuffix("$")]


def test_tensorboard_calls_a_run_done_when_it_is_and_not_when_it_failed_before(
    train: Callable[..., Finished], tmp_path: Path
) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    with pytest.raises(RunFailed):
        train("logger=tensorboard", "optim.lr=1e30", "optim.warmup_frac=0")
    failed = read_events(Finished(tmp_path / "run"))
    assert set(failed.PluginTagToContent("hparams")) == {metadata.SESSION_START_INFO_TAG}
    assert not any(tag.startswith("summary/") for tag in failed.Tags()["scalars"])
    done = read_events(train("logger=tensorboard"))  # tried again in the same folder, as a sweep does
    end = done.PluginTagToContent("hparams")[metadata.SESSION_END_INFO_TAG]
    assert metadata.parse_session_end_info_plugin_data(end).status == api_pb2.STATUS_SUCCESS
    assert "summary/val_loss" in done.Tags()["scalars"]


def test_tensorboard_shows_where_tokens_go_under_as_many_keys_for_any_number_of_experts(
    train: Callable[..., Finished],
) -> None:
    tags = []
    for experts in (4, 8):
        finished = train("logger=tensorboard", *PICTURES, f"model.num_experts={experts}", into=str(experts))
        events = read_events(finished)
        tags.append({kind: set(events.Tags()[kind]) for kind in ("images", "histograms", "scalars")})
        assert [image.step for image in events.Images("figures/usage")] == [4, 8]
        width = events.Images("figures/layers")[0].width
        assert width > 500
    assert tags[0] == tags[1]
    assert tags[0]["images"] == {"figures/layers", "figures/usage", "figures/control"}
    assert tags[0]["histograms"] == {"distribution/bias", "distribution/lens", "distribution/utilisation"}


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
    swept = ["chrono.pressure_scale=0.1,0.5", "sweep.name=study", "hydra.sweep.dir=sweep"]
    outcome = command("-m", *tiny, "logger=wandb", *PICTURES, "trainer.eval_every_steps=4", *swept)
    assert outcome.code == 0, outcome.stderr
    runs = [WandbRun(tmp_path / "sweep" / job) for job in ("0", "1")]
    assert runs[0].run.run_id != runs[1].run.run_id
    for job, run in enumerate(runs):
        finished = Finished(tmp_path / "sweep" / str(job))
        assert run.exit_code == 0
        assert (run.run.run_group, run.run.job_type) == ("study", "train")
        assert list(run.run.tags) == ["chronovisor", "mixtral_2x4"]
        assert run.config["chrono"]["pressure_scale"] == (0.1, 0.5)[job]
        assert run.config["sweep"]["name"] == "study"
        assert f"wandb sync {run.file.parent}" in outcome.stdout
        assert_history_is_the_metrics(run, finished)
        assert_summary_is_the_summary(run, finished)


def assert_history_is_the_metrics(run: WandbRun, finished: Finished) -> None:
    """Every cell of `metrics.csv`, in rows that say how many tokens they are at; and the pictures."""
    rows = all_rows(finished)
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        logged = [row[key] for row in run.history if key in row and "figures/usage/path" not in row]
        assert logged == pytest.approx([row[key] for row in rows if key in row], nan_ok=True), key
        assert key == "train/tokens" or run.axis_of(key) == "train/tokens"
    assert all(row["train/tokens"] == row["trainer/global_step"] * 4 * 32 for row in run.history)
    for picture in ("figures/layers", "figures/usage", "figures/control"):
        assert run.axis_of(picture) == "train/tokens"
        for path in run.column(f"{picture}/path"):
            assert (run.file.parent / "files" / path).stat().st_size > 1000
    for values in ("distribution/bias", "distribution/lens", "distribution/utilisation"):
        assert sum(run.column(f"{values}/values")[-1]) == 2 * 4


def assert_summary_is_the_summary(run: WandbRun, finished: Finished) -> None:
    summary = finished.summary
    for key, value in summary.items():
        assert run.summary.get(key) == (pytest.approx(value) if isinstance(value, float) else value), key
    assert run.summary["objective"] == summary["val_loss"]
    assert run.aggregates["val/loss"] == "min"
    assert run.summary["val/loss"]["min"] == pytest.approx(min(finished.column("val/loss")))


@pytest.mark.slow
def test_a_failed_run_is_failed_in_wandb_and_a_resumed_one_keeps_its_id(
    command: Command, tiny: list[str], tmp_path: Path, offline: None
) -> None:
    point = 'sweep.point="optim.lr=1e30 seed=3"'
    broken = command(*tiny, "logger=wandb", "optim.lr=1e30", "optim.warmup_frac=0", point, "hydra.run.dir=broken")
    assert broken.code == 1
    run = WandbRun(tmp_path / "broken")
    assert run.exit_code == 1
    assert run.run.display_name == "optim.lr=1e30 seed=3"
    assert run.summary["status"] == "failed"
    assert run.summary["error"] == Finished(tmp_path / "broken").summary["error"]
    assert "objective" not in run.summary
    assert command(*tiny, "logger=wandb", "trainer.keep_every_steps=4", "hydra.run.dir=run").code == 0
    first = WandbRun(tmp_path / "run")
    first.file.parent.rename(tmp_path / "first")
    middle = "ckpt_path=run/checkpoints/step_00000004.ckpt"
    assert command(*tiny, "logger=wandb", "trainer.keep_every_steps=4", middle, "hydra.run.dir=run").code == 0
    assert WandbRun(tmp_path / "run").run.run_id == first.run.run_id


def test_a_run_is_named_after_its_point_in_a_name_that_wandb_takes() -> None:
    config: dict[str, Any] = {"sweep": {"point": None}, "chrono": {"law": "off"}, "seed": 3}
    assert run_name(config, Path("outputs/noon")) == "off-seed3-noon"
    config["sweep"]["point"] = "chrono=sign seed=3"
    assert run_name(config, Path("outputs/noon")) == "chrono=sign seed=3"
    config["sweep"]["point"] = "chrono.pressure_scale=0.1 " * 9
    assert len(run_name(config, Path("outputs/noon"))) <= LONGEST_NAME


def test_a_search_reports_its_own_objective() -> None:
    told: dict[str, Any] = {}
    experiment = SimpleNamespace(
        summary=told, finish=lambda exit_code: None, dir="run/files", settings=SimpleNamespace(mode="online")
    )
    numbers = {"status": "done", "val_loss": 5.0, "max_vio_late": 0.5, "error": None}
    assert end_wandb(cast(Any, SimpleNamespace(experiment=experiment)), numbers, "max_vio_late") is None
    assert told == {"status": "done", "val_loss": 5.0, "max_vio_late": 0.5, "objective": 0.5, "error": None}
