"""The report's table of coherence: its association with validation loss, and its phases, an arm a row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from chronomoe.study.association import Association, of_changes, of_ends
from chronomoe.study.coherence_summary import ArmCoherence, read_coherence, say_part, say_phases
from chronomoe.study.progress import progress
from chronomoe.study.shown_arms import ShownArm

EXPLANATION = (
    "Correlation of coherence with validation loss over the seeds of an arm, of the changes between evaluations and of "
    "where they end; beside it what exchanged seeds read, and how often they read as much. An association is no cause."
)


def coherence_table(shown: Sequence[ShownArm]) -> list[str]:
    """None where no arm recorded coherence."""
    found = [(one, read_coherence(one.arm)) for one in progress(shown, "phases", "arm")]
    rows = [row(one, mine) for one, mine in found if mine.panel is not None or mine.phases]
    if not rows:
        return []
    panels = [mine.panel for _, mine in found if mine.panel is not None]
    if len(panels) > 1:
        together = f"<td>{said(of_changes(panels))}</td><td>{said(of_ends(panels))}</td><td></td>"
        rows.append(f'<tr><th scope="row">All arms side by side</th>{together}</tr>')
    heads = ("Arm", "Changes", "At the end", "Phases")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    table = f"<table class='lines'><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return [f"<p>{EXPLANATION}</p>", f'<div class="scroll tall">{table}</div>']


def row(one: ShownArm, found: ArmCoherence) -> str:
    panels = [found.panel] if found.panel is not None else []
    phases = say_phases("", list(found.phases.values())).removeprefix(": ") if found.phases else "too short, or flat"
    return (
        f'<tr data-arms="{one.index}"><th scope="row">{escape(one.name)}</th><td>{said(of_changes(panels))}</td>'
        f"<td>{said(of_ends(panels))}</td><td>{escape(phases)}</td></tr>"
    )


def said(found: Association | None) -> str:
    return escape(say_part(found).replace("-", "−"))
