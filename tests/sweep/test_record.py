"""A folder or a storage holds one sweep, and says which."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from chronomoe.config import register
from chronomoe.settings import InputError
from chronomoe.study.sweep_folder import read_sweep
from chronomoe.sweep.axes import read_axes
from chronomoe.sweep.points import Composer
from chronomoe.sweep.record import FILE, check_folder, check_same, read_record, record_of, write_record, write_whole


@pytest.fixture(scope="module")
def record() -> Iterator[Callable[..., dict[str, Any]]]:
    """record(*overrides, params=…, varies=…): of the sweep that these make."""
    GlobalHydra.instance().clear()
    register()
    with Composer() as composer:

        def record(*overrides: str, params: Any = {}, varies: tuple[str, ...] = ()) -> dict[str, Any]:  # noqa: B006
            axes, fixed = read_axes(params, ["sweep.name=s", *overrides])
            return record_of(composer.shared(fixed)[0], axes, varies)

        yield record


def test_what_is_written_is_read_back(record: Callable[..., Any], tmp_path: Path) -> None:
    written = record("seed=1,2", "chrono.gamma=1e-7,0.5", "optim.lr=1e-5", "sweep.storage=null", varies=("seed", "x.y"))
    write_record(tmp_path, written)
    assert read_record(tmp_path) == written
    check_same(read_record(tmp_path), written, "here")
    assert yaml.safe_load((tmp_path / FILE).read_text())["axes"] == {
        "seed": ["1", "2"],
        "chrono.gamma": ["1e-07", "0.5"],
    }


def test_comparisons_read_what_the_sweep_wrote(record: Callable[..., Any], tmp_path: Path) -> None:
    how = ("sweep.baseline='chrono=off'", "sweep.within=[model]")
    write_record(tmp_path, record("seed=1,2", "chrono=off,sign", *how, varies=("seed", "chrono.law", "model.top_k")))
    found = read_sweep(tmp_path)
    assert found is not None
    assert (found.axis, found.within, found.baseline) == (["chrono.law"], ["model"], "chrono=off")


@pytest.mark.parametrize("now", [{"seed": "1,2,3", "chrono.gamma": "0,1"}, {"seed": "2", "chrono.gamma": "0"}])
def test_a_grid_may_gain_and_lose_values(record: Callable[..., Any], tmp_path: Path, now: dict[str, str]) -> None:
    write_record(tmp_path, record("seed=1,2", "chrono.gamma=0,1"))
    check_folder(tmp_path, record(params=now))


def test_what_varied_in_the_folder_still_varies(record: Callable[..., Any], tmp_path: Path) -> None:
    """Its runs are still there, and are compared with the others."""
    both = record("seed=1,2", "chrono.gamma=0,1", varies=("seed", "chrono.gamma"))
    write_record(tmp_path, both)
    write_record(tmp_path, record(params={"seed": "2,3", "chrono.gamma": "0"}, varies=("seed",)))
    assert read_record(tmp_path)["varies"] == ["seed", "chrono.gamma"]
    assert read_record(tmp_path)["axes"] == {"seed": ["2", "3"], "chrono.gamma": ["0"]}


def test_what_only_watches_a_run_may_change(record: Callable[..., Any], tmp_path: Path) -> None:
    write_record(tmp_path, record("seed=1,2"))
    check_folder(tmp_path, record("seed=1,2", "logger.tensorboard=true", "trainer.log_every_steps=3"))


OTHERS = {
    "shared": (["seed=1,2", "optim.lr=0.5"], r"holds another sweep: optim.lr was \S+ and is 0.5;"),
    "two_shared": (["seed=1,2", "optim.lr=0.5", "router.top_k=1"], r"\(and 1 more\)"),
    "axes": (["chrono.gamma=1,2"], "its axes are seed and not chrono.gamma"),
    "sampler": (["seed=1,2", "sweep.sampler=random"], "sampler was grid and is random"),
    "objectives": (
        ["seed=1,2", "sweep.objectives=[max_vio_late]"],
        "objectives was .*val_loss.* and is .*max_vio_late",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_another_sweep_in_the_folder_is_refused_with_what_differs_and_the_way_out(
    record: Callable[..., Any], tmp_path: Path, overrides: list[str], message: str
) -> None:
    write_record(tmp_path, record("seed=1,2"))
    with pytest.raises(InputError, match=message) as refused:
        check_folder(tmp_path, record(*overrides))
    assert str(refused.value).endswith("choose another folder with sweep.dir=… or another name with sweep.name=…")


def test_a_search_keeps_its_axes(record: Callable[..., Any], tmp_path: Path) -> None:
    search = ("sweep.sampler=random", "sweep.trials=3")
    write_record(tmp_path, record("chrono.gamma=interval(0,1)", *search))
    check_folder(tmp_path, record("chrono.gamma=interval(0,1)", "sweep.sampler=random", "sweep.trials=9"))
    with pytest.raises(InputError, match=r"axes was .*interval"):
        check_folder(tmp_path, record("chrono.gamma=interval(0,2)", *search))


@pytest.mark.parametrize("content", ["", "[1, 2]", "axes: {}", "a: b: c", "\x00"], ids=range(5))
def test_a_file_that_is_no_record_is_refused(record: Callable[..., Any], tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=r"sweep.yaml: .*delete it to write it anew"):
        check_folder(tmp_path, record("seed=1,2"))


def test_many_writers_of_one_file_leave_one_whole_text_and_nothing_else(tmp_path: Path) -> None:
    texts = [str(writer) * 20_000 for writer in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [write_whole(tmp_path / "file", text) for _ in range(20)], texts))
    assert (tmp_path / "file").read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", "before")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_whole(tmp_path / "file", "after")
    assert (tmp_path / "file").read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]
