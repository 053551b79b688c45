"""`python -m chronomoe.dashboard [runs=<folder of a sweep>] [project=…] [entity=…] [group=…]`: a W&B workspace that
compares runs.

| section | shows |
|---|---|
| Outcome | validation loss against tokens by law, by what was swept, and of every point; loss against balance |
| Coherence | of the load, its change and the gate it opens; phi, where it is measured |
| Expert usage | the pictures and distributions that runs log |
| Balance | MaxVio, load entropy, dead experts, while training and held out |
| Control | what the field is made of, and whether routing follows it |
| Throughput | tokens per second |

Runs are grouped by their law; every curve is drawn against `train/tokens`. Each call saves a view of its own.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, setting
from chronomoe.study.differences import flatten, is_beneath, varying
from chronomoe.study.run import read_config
from chronomoe.study.sweep_folder import find_runs

AXIS = "train/tokens"

CURVES: dict[str, dict[str, list[str]]] = {
    "Coherence": {
        "Coherence of the load": ["chrono/coherence"],
        "Its change": ["chrono/coherence_change"],
        "Gate": ["chrono/gate"],
        "Phi, beyond chance": ["chrono/phi_excess", "chrono/phi_fast", "chrono/phi_mid", "chrono/phi_slow"],
    },
    "Balance": {
        "MaxVio": ["router/max_vio"],
        "MaxVio, worst layer": ["router/max_vio_worst"],
        "MaxVio, held out": ["val/max_vio"],
        "Load entropy": ["router/load_entropy"],
        "Dead experts": ["router/dead_expert_frac"],
        "Dropped, held out": ["val/dropped_frac"],
    },
    "Control": {
        "Bias": ["chrono/bias"],
        "Largest bias": ["chrono/bias_max"],
        "Pressure": ["chrono/pressure"],
        "Lens": ["chrono/lens"],
        "Log-temperature": ["chrono/log_temperature"],
        "Does routing follow the field?": ["chrono/follow"],
        "Does the field know the load?": ["chrono/knowledge"],
        "Selections moved by the field, and by chance": ["val/churn_field", "val/churn_chance"],
    },
    "Throughput": {"Tokens per second": ["throughput/tokens_per_sec"]},
}
"""Section -> title of a panel -> keys. No law logs all of them; a panel shows the runs that have its keys."""

PICTURES = ["figures/usage", "figures/layers", "figures/control"]
DISTRIBUTIONS = ["distribution/utilisation", "distribution/bias", "distribution/lens"]

MOST_SWEPT = 8
"""Settings that get an axis of their own; more cannot be read side by side."""


@dataclass(kw_only=True)
class DashboardSettings:
    runs: str | None = setting(None)
    """Folder of a sweep: its project, group and swept settings are taken from there."""
    project: str | None = setting(None)
    """W&B project; null: that of `runs`, else chronomoe."""
    entity: str | None = setting(None)
    """W&B user or team; null: your default."""
    group: str | None = setting(None)
    """Show the runs of this W&B group; null: that of `runs`, else all."""


class Shown(NamedTuple):
    """What a workspace is about."""

    project: str
    group: str | None
    swept: list[str]
    """Dotted keys of the settings in which the runs differ, without the seed."""


def main() -> None:
    settings = read_arguments(DashboardSettings, sys.argv[1:])
    missing = [name for name in ("wandb", "wandb_workspaces") if find_spec(name) is None]
    if missing:
        raise InputError(f'python -m chronomoe.dashboard needs {", ".join(missing)}: pip install -e ".[wandb]"')
    shown = what_to_show(settings)
    check_login(settings.runs)
    print(save(shown, settings.entity))


def what_to_show(settings: DashboardSettings) -> Shown:
    """Raises InputError when `runs` is no folder of runs, or the group is none that can be filtered by."""
    found = Shown("chronomoe", None, []) if settings.runs is None else read_sweep(Path(settings.runs))
    group = settings.group or found.group
    if group and set(group) & set("=<>"):  # wandb-workspaces reads them as operators, inside a name too
        raise InputError(f"group={group}: W&B's workspaces cannot filter by a name with =, < or >; rename the group")
    return Shown(settings.project or found.project, group, found.swept)


def read_sweep(folder: Path) -> Shown:
    configs = [read_config(directory / "config.yaml") for directory in find_runs(folder)]
    logger, sweep = configs[0].get("logger") or {}, configs[0].get("sweep") or {}
    axes = list(read_config(folder / "sweep.yaml")["axes"]) if (folder / "sweep.yaml").is_file() else []
    differing = varying([flatten(config) for config in configs])
    return Shown(logger.get("project") or "chronomoe", logger.get("group") or sweep.get("name"), swept(differing, axes))


def swept(differing: Sequence[str], axes: Sequence[str]) -> list[str]:
    """The settings of the axes first; without axes all in which runs differ, none of which only says whose run it is.

    An axis may be a group (`chrono/clocks`), of which those settings are taken that differ.
    """
    free = [key for key in differing if key != "seed" and not key.startswith(("sweep.", "logger.", "ckpt_path"))]
    along = [key for axis in axes for key in free if is_beneath(key, [axis])]
    return list(dict.fromkeys(along or free))[:MOST_SWEPT]


def check_login(runs: str | None) -> None:
    from chronomoe.training.wandb_run import has_login

    if has_login():
        return
    folder = Path(runs or "outputs/*")
    where = folder / "runs" / "*" if (folder / "runs").is_dir() else folder / "*"
    raise InputError(
        "no W&B login, which a workspace needs (runs do not): wandb login, then sync the runs with "
        f"wandb sync {where}/wandb/offline-run-*, and repeat this command"
    )


def save(shown: Shown, entity: str | None) -> str:
    """Save the workspace as a new view; its address."""
    import wandb

    try:
        return str(workspace(entity or wandb.Api().default_entity, shown).save().url)
    except Exception as error:  # W&B's errors share no other base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"W&B did not take the workspace ({reason}): check the network, wandb login, and that project="
            f"{shown.project} and entity={entity or '(your default)'} exist"
        ) from None


def workspace(entity: str | None, shown: Shown) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity or "",
        project=shown.project,
        name=view_name(shown.group),
        sections=[
            section("Outcome", outcome(shown.swept)),
            section("Coherence", curves("Coherence")),
            section("Expert usage", usage()),
            section("Balance", [*curves("Balance"), per_layer()]),
            section("Control", curves("Control")),
            section("Throughput", [*curves("Throughput"), bars("Tokens per second, whole run", "tokens_per_sec")]),
        ],
        settings=ws.WorkspaceSettings(x_axis=AXIS, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("Group") == shown.group) if shown.group else "",
            groupby=[ws.Config("chrono.law")],
            order=[ws.Ordering(ws.Summary("objective"))],
            pinned_columns=["summary:objective", "summary:val_loss", "summary:max_vio_late", "run:state"],
        ),
    )


def view_name(group: str | None) -> str:
    """W&B takes no symbol, such as a plus sign, in a view's name."""
    plain = "".join(" " if unicodedata.category(letter).startswith("S") else letter for letter in group or "")
    return f"chronomoe: {plain}" if plain else "chronomoe"


def section(name: str, panels: list[Any]) -> Any:
    import wandb_workspaces.workspaces as ws

    return ws.Section(
        name=name,
        panels=panels,
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=3, rows=-(-len(panels) // 3)),
        panel_settings=ws.SectionPanelSettings(x_axis=AXIS),
    )


def outcome(swept: Sequence[str]) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    columns: list[Any] = [wr.Config(key) for key in dict.fromkeys(["chrono.law", *swept, "seed"])]
    columns += [wr.SummaryMetric(key) for key in ("max_vio_late", "expert_information", "val_loss")]
    by = dict.fromkeys(["chrono.law", *swept])
    return [
        *(mean_curve(f"Validation loss by {key}", "val/loss", key) for key in by),
        wr.LinePlot(title="Validation loss of every point", x=AXIS, y=["val/loss"], groupby=wr.Config("sweep.point")),
        wr.ScatterPlot(
            title="Loss against balance", x=wr.SummaryMetric("max_vio_late"), y=wr.SummaryMetric("val_loss")
        ),
        wr.ParallelCoordinatesPlot(
            title="Points", columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]
        ),
        bars("Objective", "objective"),
    ]


def curves(name: str) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.LinePlot(title=title, x=AXIS, y=[*keys]) for title, keys in CURVES[name].items()]


def mean_curve(title: str, key: str, by: str) -> Any:
    """The mean of the runs that have the same value of a setting, and their range."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=title, x=AXIS, y=[key], groupby=wr.Config(by), groupby_aggfunc="mean", groupby_rangefunc="minmax"
    )


def per_layer() -> Any:
    """However many layers there are: the keys are matched, not listed."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title="MaxVio of every layer", x=AXIS, metric_regex=r"router/layer_\d+/max_vio")


def usage() -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    pictures = [wr.MediaBrowser(title=key.split("/")[1], media_keys=[key], num_columns=2) for key in PICTURES]
    return [*pictures, *(wr.LinePlot(title=key.replace("/", " of "), x=AXIS, y=[key]) for key in DISTRIBUTIONS)]


def bars(title: str, key: str) -> Any:
    """A number of the summary, mean and range over the runs of each law."""
    import wandb_workspaces.reports.v2 as wr

    return wr.BarPlot(
        title=title,
        metrics=[key],
        groupby=wr.Config("chrono.law"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


if __name__ == "__main__":
    guarded(main)
