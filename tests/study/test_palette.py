from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from chronomoe.study.palette import EXPERTS, UTILISATION, expert_colours, utilisation_scale

# Linear-light simulation at full severity: Machado, Oliveira and Fernandes (2009), doi:10.1109/TVCG.2009.113.
VISIONS = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
}
JUST_NOTICEABLE = 2.3  # CIE76 colour difference


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB hex colour as seen with `vision`."""
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISIONS[vision]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    x, y, z = np.where((t := xyz / [0.9505, 1, 1.089]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_can_tell_any_two_experts_apart(vision: str):
    distance = min(np.linalg.norm(lab(a, vision) - lab(b, vision)) for a, b in combinations(EXPERTS, 2))
    assert distance > 7 * JUST_NOTICEABLE


@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_see_which_side_of_the_fair_share_a_cell_is_on(vision: str):
    half = len(UTILISATION) // 2
    yellowness = [lab(colour, vision)[2] for colour in UTILISATION]
    assert max(yellowness[:half]) < -10 < 10 < min(yellowness[half + 1 :])


@pytest.mark.parametrize("top", [1.5, 2.0, 8.0])
def test_the_neutral_colour_sits_at_a_utilisation_of_one(top: float):
    positions = [position for position, _ in utilisation_scale(top)]
    neutral = next(position for position, colour in utilisation_scale(top) if colour == UTILISATION[3])
    assert positions == sorted(positions)
    assert (positions[0], positions[-1]) == (0, pytest.approx(1))
    assert neutral * top == pytest.approx(1)


@pytest.mark.parametrize("num_experts", [1, 2, 8, 9, 64])
def test_every_expert_has_its_own_colour(num_experts: int):
    assert len(set(expert_colours(num_experts))) == num_experts
