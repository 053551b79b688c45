"""Colours that colour-blind readers can tell apart, shared by the PNG figures and the report.

Lines: Okabe and Ito, "Color Universal Design" (2008), https://jfly.uni-koeln.de/color/. Many experts: viridis.
Utilisation: blue (under-used) through white (fair share) to vermilion (over-used). Differences: blue (better) through
white (none) to vermilion (worse). Arms of a sweep: the hues of experts, or a ramp where they are steps of one number.
"""

from __future__ import annotations

from collections.abc import Sequence

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, BROWN = "#0072B2", "#D55E00", "#CC79A7", "#5F3D00"
PALE_BLUE, PALE_GREY, SLATE = "#A9CFE8", "#C9CDD2", "#57606A"

# Okabe and Ito's yellow is too pale for a line on white: brown stands in for it.
EXPERTS = (BLUE, VERMILION, GREEN, ORANGE, SKY_BLUE, PURPLE, BLACK, BROWN)
VIRIDIS = ("#440154", "#3B528B", "#21918C", "#5EC962", "#B5C91F")
UTILISATION = ("#08306B", "#2F7FBC", "#A9CFE8", "#FAFAF8", "#F5B78A", "#D55E00", "#7A2B00")
DIFFERENCE = ("#2F7FBC", "#FAFAF8", "#E8894A")
"""Pale enough for black text on any of it."""


def expert_colours(num_experts: int) -> list[str]:
    """One colour an expert: distinct ones for up to eight, beyond that a ramp over the expert's number."""
    if num_experts <= len(EXPERTS):
        return list(EXPERTS[:num_experts])
    return [interpolate(VIRIDIS, index / (num_experts - 1)) for index in range(num_experts)]


def arm_styles(num_arms: int, is_ordered: bool, *, may_dash: bool) -> list[tuple[str, bool]]:
    """Colour, and whether its line is broken, of each arm beside the baseline, which is black.

    A ramp if the arms are steps of one number, or too many for hues of their own.
    """
    hues = [colour for colour in EXPERTS if colour != BLACK]
    if not is_ordered and num_arms <= (2 if may_dash else 1) * len(hues):
        return [(hues[index % len(hues)], index >= len(hues)) for index in range(num_arms)]
    return [(interpolate(VIRIDIS, (index + 1) / num_arms), False) for index in range(num_arms)]


def utilisation_scale(top: float) -> list[tuple[float, str]]:
    """Colour stops over [0, top], as fractions of `top`, with the neutral colour at a utilisation of 1 (`top` > 1)."""
    half = len(UTILISATION) // 2
    under = [index / half / top for index in range(half)]
    over = [(1 + index / half * (top - 1)) / top for index in range(half + 1)]
    return list(zip([*under, *over], UTILISATION, strict=True))


def interpolate(stops: Sequence[str], position: float) -> str:
    """The colour at `position` in [0, 1] along evenly spaced hex colours."""
    index = min(int(position * (len(stops) - 1)), len(stops) - 2)
    weight = position * (len(stops) - 1) - index
    channels = [
        round((1 - weight) * int(stops[index][at : at + 2], 16) + weight * int(stops[index + 1][at : at + 2], 16))
        for at in (1, 3, 5)
    ]
    return "#" + "".join(f"{channel:02X}" for channel in channels)
