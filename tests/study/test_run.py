from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from chronomoe.config import compose_config
from chronomoe.settings import InputError
from chronomoe.study.run import Run, read_config

MakeRun = Callable[..., Path]


def read_all(directory: Path) -> tuple[object, ...]:
    """Open a run and ask for each of its files."""
    run = Run.load(directory)
    return run.metrics, run.routing, run.evaluation


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


def test_large_files_are_read_when_they_are_asked_for(make_run: MakeRun):
    directory = make_run()
    for name in ("metrics.csv", "routing.npz", "evaluation.json"):
        (directory / name).write_bytes(b"broken\n")
    run = Run.load(directory)
    assert run.setting("seed") == 7
    with pytest.raises(InputError, match=r"metrics\.csv"):
        run.curve("train/loss")


def test_what_is_given_is_not_read(finished_run: Path):
    run = Run(directory=finished_run, config={}, summary={}, metrics={"step": np.arange(3.0)})
    assert run.last_step == 2
    assert run.routing is not None


def test_an_evaluation_that_was_not_made_is_empty(finished_run: Path):
    assert Run.load(finished_run).evaluation == {}


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("configs/chrono").glob("*.yaml")))
def test_a_config_reads_as_omegaconf_reads_it(name: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    overrides = ["trainer.max_steps=1000"] + ([f"chrono.trace={tmp_path}"] if name in ("sham", "replay") else [])
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(compose_config([f"chrono={name}", *overrides]))))
    assert read_config(path) == OmegaConf.to_container(OmegaConf.load(path))


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from(["1e-5", "1e5", "1_0e3", "2026-01-02", "off", "1:30", "0x1f", "1.e3", ".5", "-.inf", "+1e-7", ""]),
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=8).filter(
        lambda text: "$" not in text
    ),
)


@given(written=st.dictionaries(st.sampled_from("abcdef"), SCALARS, min_size=1))
def test_every_scalar_survives_being_written_and_read(tmp_path_factory: pytest.TempPathFactory, written: dict):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(written)))
    assert read_config(path) == OmegaConf.to_container(OmegaConf.load(path)) == written


@pytest.mark.parametrize(
    "text", ["1e-05", "1.0e-05", "1e5", "-3E+2", "+1e-7", "2026-01-02", "1.5", "1_000", "1e", "e5"]
)
def test_a_bare_scalar_reads_as_omegaconf_reads_it(text: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(f"value: {text}\n")
    mine, theirs = read_config(path)["value"], OmegaConf.load(path).value
    assert mine == theirs
    assert type(mine) is type(theirs)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"seed: [1, 2"),
        ("config.yaml", b"- a\n- list\n"),
        ("summary.json", b'{"status": "do'),
        ("summary.json", b"[]"),
        ("summary.json", b"\xff\xfe"),
        ("config.yaml", b"\xff\xfe\xff"),
        ("evaluation.json", b"{"),
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
        read_all(directory)
    assert str(directory / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_damaged_archive_member_is_named(make_run: MakeRun):
    path = make_run() / "routing.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"routing\.npz"):
        read_all(path.parent)


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
        read_all(directory)
