"""How a sweep's arms are shown: what each is called where room is scarce, its colour, and what it is filtered by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from chronomoe.study.arms import BETWEEN_OVERRIDES
from chronomoe.study.comparison import Arm, Comparison
from chronomoe.study.comparison_table import label
from chronomoe.study.palette import BLACK, arm_styles
from chronomoe.study.run import Run

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""Of the strata, where there are several."""
LINE_LENGTH = 24
"""Characters after which a tick label is broken."""
LONGEST_WORD = 30


@dataclass(frozen=True, kw_only=True)
class ShownArm:
    arm: Arm
    index: int
    """Place among the shown arms, by which the page's script knows the arm."""
    name: str
    """Its name and stratum in full."""
    ticks: Sequence[str]
    """Lines of its label on an axis: keys without their groups."""
    colour: str
    dash: str
    values: dict[str, str]
    """Key of its name or stratum -> value."""

    @property
    def tick_text(self) -> str:
        """The label as plotly.js reads it, in which no name becomes markup."""
        return "<br>".join(map(escape, self.ticks))

    @property
    def run(self) -> Run:
        """The run that stands for the arm where one must: that of its first seed, which arms share if they can."""
        return self.arm.runs[min(self.arm.runs)]


def show_arms(comparison: Comparison) -> list[ShownArm]:
    """By stratum, the baseline first, then by settings. An arm has one colour in all strata, whose lines differ."""
    arms, strata = in_order(comparison), comparison.strata
    others = list(dict.fromkeys(arm.name for arm in arms if not arm.is_baseline))
    styles = dict(zip(others, arm_styles(len(others), is_ordered(others), may_dash=len(strata) == 1), strict=True))
    shown = []
    for index, arm in enumerate(arms):
        colour, broken = styles.get(arm.name, (BLACK, False))
        dash = DASHES[strata.index(arm.stratum) % len(DASHES)] if len(strata) > 1 else "dash" if broken else "solid"
        values = words_of(arm.name) | words_of(arm.stratum)
        shown.append(
            ShownArm(
                arm=arm,
                index=index,
                name=label(arm),
                ticks=tick_lines(values),
                colour=colour,
                dash=dash,
                values=values,
            )
        )
    return shown


def in_order(comparison: Comparison) -> list[Arm]:
    """Numbers by size, whatever order their runs lie in on the disk; other values stay in the order they have."""
    words = {id(arm): words_of(arm.name) for arm in comparison.arms}
    keys = list(dict.fromkeys(key for mine in words.values() for key in mine))
    values = {key: list(dict.fromkeys(mine[key] for mine in words.values() if key in mine)) for key in keys}
    ranks = {key: {value: rank for rank, value in enumerate(sort_values(values[key]))} for key in keys}

    def place(arm: Arm) -> tuple[object, ...]:
        mine = [ranks[key].get(words[id(arm)].get(key, ""), -1) for key in keys]
        return comparison.strata.index(arm.stratum), not arm.is_baseline, *mine

    return sorted(comparison.arms, key=place)


def words_of(name: str) -> dict[str, str]:
    """Key -> value of the name of an arm or stratum. The bare first word of an arm of no sweep is its law."""
    words = [word for word in BETWEEN_OVERRIDES.split(name) if word]
    return {key: value for key, _, value in (("law=" * ("=" not in word) + word).partition("=") for word in words)}


def is_ordered(names: Sequence[str]) -> bool:
    """Whether the arms are steps of one number."""
    words = [word for name in names for word in words_of(name).items()]
    is_one_setting = len(words) == len(names) and len({key for key, _ in words}) == 1
    return len(names) > 1 and is_one_setting and all(as_number(value) is not None for _, value in words)


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def tick_lines(values: dict[str, str]) -> list[str]:
    """`pressure_scale=0.1`, broken where it grows long."""
    lines: list[str] = []
    for key, value in values.items():
        word = f"{key.replace('/', '.').split('.')[-1]}={value}"
        word = word if len(word) <= LONGEST_WORD else f"{word[: LONGEST_WORD - 1]}…"
        if lines and len(lines[-1]) + len(word) < LINE_LENGTH:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def filters(shown: Sequence[ShownArm]) -> dict[str, list[str]]:
    """Key -> the values that a reader may choose from, numbers by size; a key of one value is no choice."""
    keys = list(dict.fromkeys(key for one in shown for key in one.values))
    choices = {key: list(dict.fromkeys(one.values[key] for one in shown if key in one.values)) for key in keys}
    return {key: sort_values(values) for key, values in choices.items() if len(values) > 1}


def sort_values(values: Sequence[str]) -> list[str]:
    """Numbers by size; other values as they come."""
    numbers = [as_number(value) for value in values]
    if any(number is None for number in numbers):
        return list(values)
    return sorted(values, key=float)


def as_json(shown: Sequence[ShownArm]) -> list[dict[str, object]]:
    """What the page's script knows of each arm."""
    return [
        {
            "name": one.name,
            "colour": one.colour,
            "ticks": one.tick_text,
            "values": one.values,
            "stratum": one.arm.stratum,
            "baseline": one.arm.is_baseline,
        }
        for one in shown
    ]
