from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chronomoe.settings import InputError
from chronomoe.study.run import Run

MakeRun = Callable[..., Path]


def test_a_run_is_read_as_it_was_written(finished_run: Path):
    run = Run.load(finished_run)
    written = np.load(finished_run / "routing.npz")
    assert run.routing is not None
    assert (run.routing.num_layers, run.routing.num_experts) == (2, 8)
    np.testing.assert_array_equal(run.routing.tokens_per_expert, written["tokens_per_expert"])
    assert list(run.routing.controls) == ["lens", "pressure", "bias", "log_temperature"]
    assert run.setting("chrono.law") == "chronovisor"
    assert run.summary["status"] == "done"
    assert run.last_step == 300


def test_a_setting_that_does_not_exist_is_none(finished_run: Path):
    run = Run.load(finished_run)
    assert run.setting("chrono.law.no.such.key") is None
    assert run.setting("nothing") is None


def test_a_curve_holds_only_the_rows_that_have_a_value(finished_run: Path):
    run = Run.load(finished_run)
    assert run.curve("val/loss").step.tolist() == [50, 100, 150, 200, 250, 300]
    assert len(run.curve("train/loss").step) == 300
    assert len(run.curve("never/logged").step) == 0


def test_the_later_row_of_a_step_written_twice_counts(make_run: MakeRun):
    directory = make_run(steps=0)
    (directory / "metrics.csv").write_text("step,train/loss\n1,5\n2,4\n3,9\n2,3.5\n3,3\n")
    curve = Run.load(directory).curve("train/loss")
    assert curve.step.tolist() == [1, 2, 3]
    assert curve.value.tolist() == [5, 3.5, 3]


def test_values_that_are_not_finite_are_left_out_of_a_curve(make_run: MakeRun):
    directory = make_run(steps=0)
    (directory / "metrics.csv").write_text("step,train/loss\n1,5\n2,nan\n3,inf\n4,4\n")
    assert Run.load(directory).curve("train/loss").step.tolist() == [1, 4]


def test_a_line_that_is_still_being_written_is_left_out(make_run: MakeRun):
    directory = make_run(steps=0)
    (directory / "metrics.csv").write_text("step,train/loss\n1,5.25\n2,4.")
    assert Run.load(directory).curve("train/loss").step.tolist() == [1]


def test_a_run_that_has_only_just_begun_is_empty(make_run: MakeRun):
    directory = make_run(steps=0)
    (directory / "summary.json").unlink()
    run = Run.load(directory)
    assert (run.summary, run.metrics, run.routing, run.last_step) == ({}, {}, None, None)


def test_a_routing_record_without_records_is_no_routing(make_run: MakeRun):
    directory = make_run(steps=0)
    np.savez(directory / "routing.npz", step=np.zeros(0, int), tokens_per_expert=np.zeros((0, 2, 8), int))
    assert Run.load(directory).routing is None


def test_a_folder_without_a_config_is_no_run(tmp_path: Path):
    with pytest.raises(InputError, match=r"no config\.yaml"):
        Run.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"seed: [1, 2"),
        ("config.yaml", b"- a\n- list\n"),
        ("summary.json", b'{"status": "do'),
        ("summary.json", b"[]"),
        ("summary.json", b"\xff\xfe"),
        ("metrics.csv", b"loss,lr\n1,2\n"),
        ("metrics.csv", b"step,train/loss\n1,five\n"),
        ("metrics.csv", b"step,train/loss\n1,5,7\n"),
        ("metrics.csv", b"step,train/loss\n,5\n"),
        ("routing.npz", b""),
        ("routing.npz", b"PK\x03\x04 cut off"),
        ("routing.npz", b"not an archive"),
    ],
)
def test_a_corrupt_file_is_named_in_one_line(make_run: MakeRun, name: str, content: bytes):
    directory = make_run()
    (directory / name).write_bytes(content)
    with pytest.raises(InputError) as raised:
        Run.load(directory)
    assert str(directory / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_archive_member_is_named(make_run: MakeRun):
    path = make_run() / "routing.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"routing\.npz"):
        Run.load(path.parent)


@pytest.mark.parametrize(
    "arrays",
    [
        {"step": np.arange(3)},
        {"step": np.arange(3), "tokens_per_expert": np.ones((4, 2, 8), int)},
        {"step": np.arange(4), "tokens_per_expert": np.ones((4, 2, 8), int), "lens": np.ones((4, 2, 7))},
        {"step": np.arange(4), "tokens_per_expert": np.ones((4, 2, 8), int), "coherence": np.ones((4, 3))},
    ],
    ids=["no tokens", "other length", "other experts", "other layers"],
)
def test_arrays_that_do_not_fit_together_are_refused(make_run: MakeRun, arrays: dict[str, np.ndarray]):
    directory = make_run(steps=0)
    np.savez(directory / "routing.npz", **arrays)
    with pytest.raises(InputError, match=r"routing\.npz"):
        Run.load(directory)
