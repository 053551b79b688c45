"""The blocks a report is made of: functions from a run, or a chart, to a piece of HTML.

A block with nothing to say is the empty string. Every text that comes from a run is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from omegaconf import OmegaConf

from chronomoe.study import findings
from chronomoe.study.charts import Chart, layer_keys
from chronomoe.study.numbers import NUMBERS, show
from chronomoe.study.palette import expert_colours
from chronomoe.study.run import Run


def header(run: Run) -> str:
    """What came out, and of which run."""
    status = escape(str(run.summary.get("status", "unfinished")))
    facts = {
        "Law": run.setting("chrono.law"),
        "Model": findings.shape(run),
        "Data": findings.data(run),
        "Seed": run.setting("seed"),
        "Steps": run.last_step,
        "Config": run.summary.get("config_hash"),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{escape(show(value))}</dd></div>" for name, value in facts.items())
    return (
        f'<header><p class="eyebrow">chronomoe run <code>{escape(str(run.directory))}</code></p>'
        f'<h1>{escape(findings.loss(run))} <span class="status {status}">{status}</span></h1>'
        f"<dl>{items}</dl></header>"
    )


def failure(run: Run) -> str:
    """Why the run ended early, above everything else."""
    if not run.summary.get("error"):
        return ""
    ending = "was stopped" if run.summary.get("status") == "stopped" else "failed"
    when = f"after step {run.last_step}" if run.last_step else "before its first step was logged"
    error = escape(str(run.summary["error"]))
    return f'<section class="failure" role="alert"><h2>The run {ending} {when}</h2><pre>{error}</pre></section>'


def tiles(run: Run) -> str:
    """The four numbers a reader looks for first, as far as the run left them."""

    def text(key: str, form: str = ",") -> str:
        return show(run.summary.get(key), form)

    texts = {
        "val_loss": (
            "Validation loss",
            text("val_loss", ".3f"),
            f"perplexity {text('val_perplexity', ',.1f')}, unigram model {text('unigram_perplexity', ',.0f')}",
        ),
        "max_vio_late": (
            "MaxVio at the end",
            text("max_vio_late", ".2f"),
            f"{text('max_vio_early', '.2f')} in the first third",
        ),
        "dead_expert_frac": (
            "Dead experts",
            text("dead_expert_frac", ".1%"),
            f"load entropy {text('load_entropy', '.3f')}",
        ),
        "tokens_per_sec": (
            "Tokens per second",
            text("tokens_per_sec", ",.0f"),
            f"{text('tokens')} tokens, {text('wall_seconds', ',.0f')} s in all",
        ),
    }
    items = [
        f"<li><span>{label}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></li>"
        for key, (label, value, note) in texts.items()
        if run.summary.get(key) is not None
    ]
    return f'<ul class="tiles">{"".join(items)}</ul>' if items else ""


def section(title: str, *parts: str) -> str:
    """Parts under a heading; no heading without parts."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def figure(chart: Chart) -> str:
    """The place of a chart: its title, the caption of the view it shows, and the box the page's script draws in, which
    has the height of the chart before it is drawn."""
    title, height = escape(chart.title), chart.views[0]["layout"]["height"]
    return (
        f'<figure id="{chart.name}"><figcaption><h3>{title}</h3><p>{escape(chart.captions[0])}</p></figcaption>'
        f'<div class="plot" role="img" aria-label="{title}" style="min-height:{height}px"></div></figure>'
    )


def selector(label: str, menu: str, options: Mapping[str, str], first: str = "") -> str:
    """A menu, from key to text, that switches the views of the charts it is one of the menus of; `first` is chosen."""
    entries = "".join(
        f'<option value="{escape(key)}"{" selected" * (key == first)}>{escape(text)}</option>'
        for key, text in options.items()
    )
    choice = f'<select data-menu="{menu}" autocomplete="off">{entries}</select>'
    return f'<label class="selector">{escape(label)} {choice}</label>'


def layer_menu(num_layers: int) -> str:
    return selector("Layer", "layer", {key: f"MoE layer {key}" for key in layer_keys(num_layers)})


def layer_browser(run: Run, layers: Sequence[Chart]) -> list[str]:
    """Usage and control of one MoE layer at a time, under one menu."""
    if run.routing is None:
        return ["<p>No routing was recorded: a dense model, or a run that ended before its first record.</p>"]
    usage, *controls = layers
    return [
        layer_menu(run.routing.num_layers),
        figure(usage),
        f"<p>{escape(findings.control(run))}, over all layers. Each line is an expert:</p>",
        expert_legend(run.routing.num_experts),
        '<div class="columns">' + "".join(map(figure, controls)) + "</div>",
    ]


def expert_legend(num_experts: int) -> str:
    """One legend for all the charts whose lines are experts."""
    colours = enumerate(expert_colours(num_experts))
    items = "".join(f'<li style="--colour:{colour}">{expert}</li>' for expert, colour in colours)
    return f'<ul class="experts" aria-label="Colours of the experts">{items}</ul>'


def numbers_table(run: Run) -> str:
    """Every number of the summary with its unit and meaning."""
    rows = []
    for number in NUMBERS:
        value = escape(show(run.summary.get(number.key), number.form))
        rows.append(
            f'<tr><th scope="row">{number.label}</th><td class="value">{value}</td>'
            f"<td>{number.unit}</td><td>{number.meaning}</td></tr>"
        )
    head = '<tr><th>Number</th><th class="value">Value</th><th>Unit</th><th>Meaning</th></tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def configuration(run: Run) -> str:
    text = escape(OmegaConf.to_yaml(OmegaConf.create(run.config)))
    return f"<details><summary>Resolved configuration</summary><pre>{text}</pre></details>"


def provenance(run: Run) -> str:
    """The code and library versions that made the run."""
    versions = run.summary.get("versions")
    parts = [f"{name} {version}" for name, version in versions.items()] if isinstance(versions, dict) else []
    if run.summary.get("git_revision"):
        parts.append(f"revision {run.summary['git_revision']}")
    return f'<p class="provenance">{escape(" · ".join(parts))}</p>' if parts else ""
