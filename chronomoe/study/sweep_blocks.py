"""The blocks of a sweep's report: functions to pieces of HTML, as in `blocks.py`.

Elements that belong to arms name them (`data-arm`, `data-arms`), so that the page's script can hide them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from chronomoe.study import findings
from chronomoe.study.comparison import Arm, Comparison
from chronomoe.study.differences import shortened
from chronomoe.study.effects_table import HEADS
from chronomoe.study.heat_map import HeatMap
from chronomoe.study.measurements import METRICS
from chronomoe.study.numbers import show
from chronomoe.study.run import Run
from chronomoe.study.shown_arms import ShownArm, filters
from chronomoe.study.sweep_findings import finding, has_effect
from chronomoe.study.sweep_points import Point, count_status

MOST_POINTS = 200
MOST_CHIPS = 24
TALL_ROWS = 30
LONGEST_ERROR = 2_000
RULES = (
    "Difference: mean over pairs of arm minus baseline, runs of one seed being a pair. Wins: pairs that are better. "
    "Corrected p: sign-flip test, after Holm. By interval: better or worse where the 95% interval leaves out 0, from 3 "
    "pairs on. Documented: robust if two in three pairs are better, partial from one in three; for the validation loss "
    "of evaluated runs a pair is better only when specialisation rises too. How often each is wrong: docs/statistics.md"
    ". Throughput also tells what else the machine did."
)


def header(name: str, folder: str, shown: Sequence[ShownArm], comparison: Comparison, points: Sequence[Point]) -> str:
    """What came out, and of which sweep."""
    runs = [run for one in shown for run in one.arm.runs.values()]
    seeds = sorted({seed for one in shown for seed in one.arm.runs})
    done = f"{len(runs)} done" + (f", {count_status(points)}" if points else "")
    facts = {
        "Runs": done,
        "Arms": len(shown),
        "Seeds": f"{len(seeds)} ({', '.join(map(str, seeds[:8]))}{', …' * (len(seeds) > 8)})",
        "Baseline": comparison.baseline,
        "Swept": ", ".join(f"{key} ({len(values)} values)" for key, values in filters(shown).items()),
        "Axis": ", ".join(shortened(comparison.axis)),
        "Compared within": ", ".join(comparison.within) or None,
        "Model": several(findings.shape(run) for run in runs),
        "Data": several(findings.data(run) for run in runs),
        "Steps": several(show(run.summary.get("steps")) for run in runs),
    }
    balance = finding("max_vio_late", shown, comparison.baseline) + "." if has_effect(shown, "max_vio_late") else ""
    return (
        f'<header><p class="eyebrow">chronomoe sweep <code>{escape(folder)}</code></p><h1>{escape(name)}</h1>'
        f'<p class="finding">{escape(finding("val_loss", shown, comparison.baseline))}.</p>'
        f"<p>{escape(balance)}</p>{fact_list(facts)}</header>"
    )


def fact_list(facts: Mapping[str, object]) -> str:
    items = (f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in facts.items() if value)
    return f"<dl>{''.join(items)}</dl>"


def several(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def without_comparison(name: str, folder: str, reason: str, points: Sequence[Point], done: Sequence[Run]) -> str:
    """The header of a sweep that has nothing to compare yet."""
    facts = {"Runs": ", ".join(filter(None, [f"{len(done)} done" if done else "", count_status(points)]))}
    return (
        f'<header><p class="eyebrow">chronomoe sweep <code>{escape(folder)}</code></p><h1>{escape(name)}</h1>'
        f'<p class="finding">Nothing to compare yet: {escape(reason)}.</p>{fact_list(facts)}</header>'
    )


def notes(comparison: Comparison) -> str:
    items = "".join(f"<li>{escape(note[0].upper() + note[1:])}.</li>" for note in comparison.notes)
    return f'<ul class="notes">{items}</ul>' if items else ""


def filter_bar(shown: Sequence[ShownArm], metrics: Sequence[str]) -> str:
    """A menu a setting that arms are told apart by, the menu of metrics, and how many arms are shown."""
    menus = [filter_menu(key, values, shown) for key, values in filters(shown).items()]
    clear = '<button type="button" class="clear">Show all</button>' if menus else ""
    options = "".join(f'<option value="{key}">{escape(METRICS[key].label)}</option>' for key in metrics)
    if metrics:
        menus.append(f'<label>Metric <select data-menu="metric" autocomplete="off">{options}</select></label>')
    count = f'<output class="count" aria-live="polite">{len(shown)} of {len(shown)} arms shown</output>'
    return f'<div class="filters" role="group" aria-label="Filters">{"".join(menus)}{clear}{count}</div>'


def filter_menu(key: str, values: Sequence[str], shown: Sequence[ShownArm]) -> str:
    """A value is written after `=`, which tells an arm without the setting from no choice."""
    options = ['<option value="">all</option>']
    options += [f'<option value="={escape(value)}">{escape(value)}</option>' for value in values]
    if any(key not in one.values for one in shown):
        options.append('<option value="=">(not set)</option>')
    menu = f'<select data-filter="{escape(key)}" autocomplete="off">{"".join(options)}</select>'
    return f"<label>{escape(key)} {menu}</label>"


def arm_legend(shown: Sequence[ShownArm], strata: Sequence[str]) -> str:
    """One legend for all charts: a chip an arm, and the line style of each stratum."""
    by_name: dict[str, list[ShownArm]] = {}
    for one in shown:
        by_name.setdefault(one.arm.name, []).append(one)
    chips = "".join(
        chip(name, members, members[0].colour, members[0].dash if len(strata) == 1 else "solid")
        for name, members in by_name.items()
    )
    legend = f'<ul class="experts arms" aria-label="Colours of the arms">{chips}</ul>'
    if len(by_name) > MOST_CHIPS:
        legend = f"<details><summary>Colours of {len(by_name)} arms</summary>{legend}</details>"
    if len(strata) > 1:
        styles = {one.arm.stratum: one.dash for one in shown}
        items = "".join(
            chip(stratum, [one for one in shown if one.arm.stratum == stratum], "#1b1f24", dash)
            for stratum, dash in styles.items()
        )
        legend += f'<ul class="experts arms" aria-label="Lines of the strata">{items}</ul>'
    return legend


def chip(name: str, members: Sequence[ShownArm], colour: str, dash: str) -> str:
    indices = " ".join(str(one.index) for one in members)
    baseline = " (baseline)" if all(one.arm.is_baseline for one in members) else ""
    style = f"--colour:{colour}"
    return f'<li class="{dash}" style="{style}" data-arms="{indices}">{escape(name)}{baseline}</li>'


def verdict_table(shown: Sequence[ShownArm], texts: Sequence[Sequence[str] | None]) -> str:
    """A row an arm; `texts` are those of the metric that is shown first."""
    heads = [sort_head("Arm")] + [sort_head(text, is_value=place < 6) for place, text in enumerate(HEADS)]
    rows = []
    for one, mine in zip(shown, texts, strict=True):
        stratum = f"<small>{breakable(one.arm.stratum)}</small>" if one.arm.stratum else ""
        cells = "".join(
            f'<td{" class=value" * (place < 6)} data-label="{label}" data-text="{text}">{text}</td>'
            for place, (label, text) in enumerate(zip(HEADS, mine or [""] * len(HEADS), strict=True))
        )
        rows.append(
            f'<tr data-arm="{one.index}"{" hidden" * (mine is None)}><th scope="row">'
            f'<i style="--colour:{one.colour}"></i>{breakable(one.arm.name)}{stratum}</th>{cells}</tr>'
        )
    tall = " tall" * (len(rows) > TALL_ROWS)
    return (
        f'<div class="scroll{tall}"><table class="verdicts"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div><p class='provenance'>{RULES}</p>"
    )


def sort_head(text: str, is_value: bool = False) -> str:
    css = ' class="value"' if is_value else ""
    return f'<th scope="col" aria-sort="none"{css}><button type="button">{text}</button></th>'


def heat_map_tables(maps: Sequence[HeatMap]) -> list[str]:
    """Cells are filled by the page's script, for the chosen metric."""
    if not maps:
        return []
    ramp = (
        '<p class="ramp"><span>better by <span class="largest"></span></span><i></i><span>worse by as much</span>'
        '<span><span class="unclear swatch"></span> hatched: the 95% interval includes 0</span></p>'
    )
    tables = [heat_map_table(one) for one in maps]
    return [ramp, *tables, '<p class="more-grids" hidden>Only the first tables are shown; filters show others.</p>']


def heat_map_table(one: HeatMap) -> str:
    columns = "".join(f'<th scope="col">{escape(value)}</th>' for value in one.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(value)}</th>'
        + "".join("<td></td>" if arm is None else f'<td data-arm="{arm}"></td>' for arm in arms)
        + "</tr>"
        for value, arms in zip(one.rows, one.arms, strict=True)
    )
    where = f"<caption>{escape(one.where)}</caption>" if one.where else ""
    return (
        f'<div class="scroll grid"><table class="heat">{where}<thead><tr><th></th>'
        f'<th scope="colgroup" colspan="{len(one.columns)}">{breakable(one.column_key)}</th></tr>'
        f'<tr><th scope="col">{breakable(one.row_key)}</th>{columns}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def breakable(key: str) -> str:
    """Keys that may be broken after their dots and underscores; numbers stay whole."""
    return re.sub(r"([._])(?=[A-Za-z])", r"\1<wbr>", escape(key))


def settings_table(shown: Sequence[ShownArm], baselines: Mapping[str, Arm]) -> str:
    """Settings by arm; what is as in the stratum's baseline is pale."""
    keys = list(dict.fromkeys(key for one in shown for key in one.arm.settings))
    if not keys:
        return ""
    rows = []
    for one in shown:
        usual = baselines[one.arm.stratum].settings
        cells = "".join(
            f"<td{' class=usual' * (one.arm.settings.get(key) == usual.get(key) and not one.arm.is_baseline)}>"
            f"{escape(show(one.arm.settings[key], '')) if key in one.arm.settings else '–'}</td>"
            for key in keys
        )
        rows.append(f'<tr data-arms="{one.index}"><th scope="row">{escape(one.name)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{escape(key)}</th>' for key in ["Arm", *keys])
    table = f'<table class="wide"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="scroll tall">{table}</div>'


def shared_settings(shared: Mapping[str, object]) -> str:
    text = escape("\n".join(f"{key}: {value}" for key, value in shared.items()))
    return f"<details><summary>{len(shared)} settings that all runs share</summary><pre>{text}</pre></details>"


def points_table(points: Sequence[Point]) -> str:
    """What is not finished, where it lies and why."""
    rows = "".join(
        f'<tr><th scope="row">{escape(point.name)}</th><td class="point {escape(point.status)}">{escape(point.status)}'
        f"{'' if point.last_step is None else f' after step {point.last_step:,}'}</td>"
        f"<td><code>{escape(point.directory)}</code></td><td>{error(point.error)}</td></tr>"
        for point in points[:MOST_POINTS]
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("Point", "Status", "Directory", "Error"))
    rest = f"<p>And {len(points) - MOST_POINTS} more.</p>" if len(points) > MOST_POINTS else ""
    table = f'<table class="points"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll">{table}</div>{rest}' if points else ""


def error(text: str) -> str:
    shown = text if len(text) <= LONGEST_ERROR else f"{text[:LONGEST_ERROR]} …"
    return f"<pre>{escape(shown)}</pre>" if shown else ""


def line_list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ""
