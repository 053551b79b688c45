from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from chronomoe.study.figures import (
    MAX_CONTROL_LAYERS,
    draw_control,
    draw_layers,
    draw_loss,
    draw_phi,
    draw_run,
    draw_usage,
)
from chronomoe.study.run import Run

MakeRun = Callable[..., Path]
ALL = ["loss", "coherence", "usage", "layers", "control"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALL),
        ({"law": "off"}, ["loss", "usage", "layers", "control"]),
        ({"dense": True}, ["loss"]),
        ({"steps": 1, "error": "loss is not finite"}, ALL),
        ({"steps": 0, "error": "out of memory"}, []),
        ({"num_layers": 1, "num_experts": 9, "steps": 20}, ALL),
    ],
    ids=["complete", "no control", "dense", "one record", "nothing", "one layer"],
)
def test_a_run_gets_the_figures_it_has_records_for(make_run: MakeRun, options: dict, expected: list[str]):
    directory = make_run(**options)
    written = draw_run(Run.load(directory))
    assert written == [directory / "figures" / f"{name}.png" for name in expected]
    for path in written:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] == 1140
        assert len(np.unique(pixels[:, :, 0])) > 20  # more than a frame


def test_the_heat_maps_show_the_recorded_loads(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    figure = draw_usage(run)
    assert figure is not None
    maps = [mesh for axes in figure.axes for mesh in axes.collections if isinstance(mesh, QuadMesh)][:2]
    for layer, mesh in enumerate(maps):
        shown = np.asarray(mesh.get_array())  # [E, steps]
        for step in (0, 150, 299):
            counts = run.routing.tokens_per_expert[step, layer]
            np.testing.assert_allclose(shown[:, step], counts / counts.mean())


def test_the_layers_figure_pools_the_last_records(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    figure = draw_layers(run)
    assert figure is not None
    counts = run.routing.tokens_per_expert[-50:].sum(axis=0)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), counts / counts.mean(axis=1, keepdims=True))


def test_the_loss_figure_holds_training_validation_and_the_unigram_model(finished_run: Path):
    run = Run.load(finished_run)
    figure = draw_loss(run)
    assert figure is not None
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    np.testing.assert_array_equal(lines["validation loss"].get_ydata(), run.curve("val/loss").value)
    unigram = next(line for label, line in lines.items() if label.startswith("unigram"))
    assert np.exp(unigram.get_ydata()[0]) == pytest.approx(run.summary["unigram_perplexity"])


def test_phi_is_drawn_where_it_was_measured(make_run: MakeRun):
    directory = make_run(steps=5)
    assert draw_phi(Run.load(directory)) is None
    lines = (directory / "metrics.csv").read_text().splitlines()
    extra = [
        "chrono/phi_excess,chrono/phi_fast,chrono/phi_mid,chrono/phi_slow",
        *["0.2,0.1,0.05,0.01"] * (len(lines) - 1),
    ]
    (directory / "metrics.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(lines, extra, strict=True)))
    figure = draw_phi(Run.load(directory))
    assert figure is not None
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert set(drawn["slow memory"]) == {0.01}
    assert set(drawn["each logged step"]) == {0.2}


def test_the_control_figure_has_a_line_for_every_expert(finished_run: Path):
    run = Run.load(finished_run)
    assert run.routing is not None
    figure = draw_control(run)
    assert figure is not None
    lens_of_layer_0 = figure.axes[0].lines[1:]  # the first line is the zero
    assert len(lens_of_layer_0) == 8
    for expert, line in enumerate(lens_of_layer_0):
        np.testing.assert_array_equal(line.get_ydata(), run.routing.controls["lens"][:, 0, expert])


def test_a_deep_model_shows_control_in_a_few_layers_with_the_first_and_the_last(make_run: MakeRun):
    figure = draw_control(Run.load(make_run(num_layers=20, steps=5)))
    assert figure is not None
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel().startswith("layer")]
    assert len(labels) == MAX_CONTROL_LAYERS
    assert (labels[0], labels[-1]) == ("layer 0", "layer 19")


def test_titles_say_what_is_seen_and_of_which_run(finished_run: Path):
    figure = draw_loss(Run.load(finished_run))
    assert figure is not None
    texts = [text.get_text() for text in figure.texts]
    assert "nats/token at step 300" in texts[0]
    assert "law chronovisor" in texts[1]
