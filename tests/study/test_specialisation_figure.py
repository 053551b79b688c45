"""The heat map shows the numbers of the evaluation, and its title what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from chronomoe.study.figures import MAX_CONTROL_LAYERS
from chronomoe.study.run import Run
from chronomoe.study.specialisation_figure import draw_specialisation, finding, write_specialisation


def evaluation(num_layers: int, debiased: float | None = 0.25) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    layers = [{"domain_specialisation": rng.uniform(0, 3, (3, 8)).tolist()} for _ in range(num_layers)]
    mean = {"domain_debiased": debiased}
    trained = {"mean": mean, "layers": layers}
    return {
        "domains": ["code", "prose", "tables"],
        "trained": trained,
        "untrained": {"mean": {"domain_debiased": 0.03}},
    }


@pytest.mark.parametrize("num_layers", [1, 2, 20])
def test_each_panel_is_a_layers_table(make_run: Callable[..., Path], num_layers: int) -> None:
    found = evaluation(num_layers)
    found["trained"]["layers"][0]["domain_specialisation"][1][2] = None  # an expert without tokens
    figure = draw_specialisation(Run.load(make_run()), found)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == min(num_layers, MAX_CONTROL_LAYERS)
    for index, panel in ((0, panels[0]), (num_layers - 1, panels[-1])):
        expected = np.array(found["trained"]["layers"][index]["domain_specialisation"], dtype=float)
        np.testing.assert_array_equal(np.ma.filled(panel.images[0].get_array(), np.nan), expected)
        assert panel.get_title(loc="left") == f"MoE layer {index}"
        assert [label.get_text() for label in panel.get_yticklabels()] == found["domains"]


def test_the_file_is_written_and_the_title_says_trained_beside_untrained(make_run: Callable[..., Path]) -> None:
    run = Run.load(make_run())
    path = write_specialisation(run, evaluation(2))
    assert path == run.directory / "figures" / "specialisation.png"
    assert matplotlib.image.imread(path).shape[1] == 1140
    assert "0.250" in finding(evaluation(2))
    assert "untrained 0.030" in finding(evaluation(2))
    assert "too few" in finding(evaluation(2, debiased=None))
