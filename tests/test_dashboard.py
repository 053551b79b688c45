"""The W&B workspace: it shows what runs log, about the sweep it is asked for, and says what it needs."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_runs import Finished

from chronomoe import dashboard
from chronomoe.dashboard import DashboardSettings, Shown, what_to_show, workspace
from chronomoe.entry import guarded
from chronomoe.settings import InputError
from chronomoe.study.differences import flatten
from chronomoe.study.run import read_config
from chronomoe.training import wandb_run

SECTIONS = ["Outcome", "Coherence", "Expert usage", "Balance", "Control", "Throughput"]


@pytest.fixture
def built() -> Any:
    pytest.importorskip("wandb_workspaces")
    return workspace("someone", Shown("chronomoe", "study", ["chrono.pressure_scale"]))


def spec(built: Any) -> dict[str, Any]:
    """What would be sent to W&B."""
    return json.loads(built._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(built: Any, kind: str) -> list[dict[str, Any]]:
    sections = spec(built)["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if kind in panel["viewType"].lower()]


def test_every_section_is_there_open_and_drawn_against_tokens(built: Any) -> None:
    assert [section.name for section in built.sections] == SECTIONS
    assert all(section.panels and section.is_open for section in built.sections)
    assert spec(built)["settings"]["xAxis"] == "train/tokens"
    lines = panels(built, "line")
    assert lines
    assert {line["xAxis"] for line in lines} == {"train/tokens"}


def test_the_runs_of_the_group_are_shown_and_gathered_by_their_law(built: Any) -> None:
    (runs,) = spec(built)["runSets"]
    (wanted,) = runs["filters"]["filters"]
    assert (wanted["key"]["name"], wanted["op"], wanted["value"]) == ("group", "=", "study")
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [("config", "chrono.value.law")]
    everything = workspace("someone", Shown("chronomoe", None, []))
    assert spec(everything)["runSets"][0]["filters"]["filters"] == []


def test_a_group_that_wandb_cannot_filter_by_is_refused_and_symbols_stay_out_of_the_name() -> None:
    with pytest.raises(InputError, match="group=lr=1"):
        what_to_show(DashboardSettings(group="lr=1"))
    assert workspace("someone", Shown("chronomoe", "two+two", [])).name == "chronomoe: two two"


def test_every_panel_shows_what_a_run_logs(built: Any, train: Callable[..., Finished]) -> None:
    finished = train("logger=tensorboard", "chrono.phi=true", "trainer.eval_every_steps=4")
    with (finished.directory / "metrics.csv").open(newline="") as file:
        logged = set(next(csv.reader(file)))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.directory / "tensorboard"))
    events.Reload()
    pictures, distributions = events.Tags()["images"], events.Tags()["histograms"]
    numbers = {*finished.summary, "objective"}
    settings = set(flatten(read_config(finished.directory / "config.yaml")))

    drawn = {key for line in panels(built, "line") for key in line.get("metrics", [])}
    assert drawn - logged == set(distributions)
    (regex,) = [line["metricRegex"] for line in panels(built, "line") if "metricRegex" in line]
    assert [key for key in logged if re.fullmatch(regex, key)] != []
    assert sorted(key for media in panels(built, "media") for key in media["mediaKeys"]) == sorted(pictures)
    assert {key for bar in panels(built, "bar") for key in bar["metrics"]} <= numbers
    (scatter,), (parallel,) = panels(built, "scatter"), panels(built, "parallel")
    columns = [column["accessor"] for column in parallel["columns"]]
    assert columns[:3] == ["config:chrono.value.law", "config:chrono.value.pressure_scale", "config:seed.value"]
    for reference in [scatter["xAxis"], scatter["yAxis"], *columns]:
        kind, _, key = reference.partition(":")
        assert key.replace(".value", "") in {"config": settings, "summary": numbers}[kind]
    groups = {line["groupBy"] for line in panels(built, "line") if "groupBy" in line}
    assert groups == {"chrono.value.law", "chrono.value.pressure_scale", "sweep.value.point"}
    assert {group.replace(".value", "") for group in groups} <= settings


def make_sweep(folder: Path, axes: dict[str, Any], configs: list[dict[str, Any]]) -> None:
    from omegaconf import OmegaConf

    for number, config in enumerate(configs):
        (folder / "runs" / str(number)).mkdir(parents=True)
        OmegaConf.save(OmegaConf.create(config), folder / "runs" / str(number) / "config.yaml")
    if axes:
        OmegaConf.save(OmegaConf.create({"axes": axes}), folder / "sweep.yaml")


def a_config(law: str, seed: int, **chrono: Any) -> dict[str, Any]:
    own = {"project": "p", "group": None}, {"name": "study", "point": f"chrono={law} seed={seed}"}
    return {"logger": own[0], "sweep": own[1], "chrono": {"law": law} | chrono, "seed": seed}


def test_a_sweeps_folder_says_what_is_shown(tmp_path: Path) -> None:
    configs = [a_config("off", 1), *(a_config("chronovisor", 1, gamma=0.1, pressure_scale=p) for p in (0.1, 0.5))]
    make_sweep(tmp_path / "engine", {"chrono.pressure_scale": [0.1, 0.5], "seed": [1]}, configs)
    make_sweep(tmp_path / "multirun", {}, configs)
    by_engine = what_to_show(DashboardSettings(runs=str(tmp_path / "engine")))
    assert by_engine == Shown("p", "study", ["chrono.pressure_scale"])
    by_hydra = what_to_show(DashboardSettings(runs=str(tmp_path / "multirun"), group="mine", project="other"))
    assert by_hydra == Shown("other", "mine", ["chrono.law", "chrono.gamma", "chrono.pressure_scale"])


def leaves_with(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["dashboard", *arguments])
    with pytest.raises(SystemExit) as left:
        guarded(dashboard.main)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_a_login_it_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(wandb_run, "has_login", lambda: False)
    line = leaves_with(monkeypatch, capsys)
    assert "wandb login" in line
    assert "wandb sync outputs/*/*/wandb/offline-run-*" in line
    make_sweep(tmp_path, {}, [a_config("off", 1)])
    assert f"wandb sync {tmp_path}/runs/*/wandb/offline-run-*" in leaves_with(monkeypatch, capsys, f"runs={tmp_path}")


def test_without_the_library_it_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "find_spec", lambda name: None)
    line = leaves_with(monkeypatch, capsys)
    assert "wandb_workspaces" in line
    assert 'pip install -e ".[wandb]"' in line


def test_with_a_login_the_workspace_is_saved_and_its_address_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ws = pytest.importorskip("wandb_workspaces.workspaces")
    saved: list[Any] = []

    def save(self: Any) -> Any:
        saved.append(self)
        return SimpleNamespace(url="https://example.org/view")

    monkeypatch.setattr(wandb_run, "has_login", lambda: True)
    monkeypatch.setattr(ws.Workspace, "save", save)
    monkeypatch.setattr(sys, "argv", ["dashboard", "entity=us", "project=p", "group=g"])
    dashboard.main()
    assert capsys.readouterr().out == "https://example.org/view\n"
    (workspace,) = saved
    assert (workspace.entity, workspace.project, workspace.name) == ("us", "p", "chronomoe: g")


def test_what_wandb_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ws = pytest.importorskip("wandb_workspaces.workspaces")

    def save(self: Any) -> None:
        raise ValueError("project not found\nand more")

    monkeypatch.setattr(wandb_run, "has_login", lambda: True)
    monkeypatch.setattr(ws.Workspace, "save", save)
    line = leaves_with(monkeypatch, capsys, "entity=us", "project=p")
    assert "project not found" in line
    assert "project=p" in line
