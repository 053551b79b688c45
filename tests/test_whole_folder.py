"""Folders that are whole or not there."""

from __future__ import annotations

import errno
from collections import namedtuple
from pathlib import Path

import pytest

from chronomoe.settings import InputError, RunFailed
from chronomoe.whole_folder import check_vacant, whole_folder


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "target"
    with whole_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with whole_folder(tmp_path / "target") as folder:
        (folder / "a").write_text("1")
    assert (tmp_path / "target" / "a").read_text() == "1"


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ValueError("x")], ids=repr)
def test_nothing_is_left_of_one_that_was_not_finished(tmp_path: Path, raised: BaseException) -> None:
    def fill() -> None:
        with whole_folder(tmp_path / "target") as folder:
            (folder / "a").write_text("1")
            raise raised

    with pytest.raises(type(raised)):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_that_names_the_folder_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(RunFailed, match=f"not write {tmp_path}/target: No space"),
        whole_folder(tmp_path / "target"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(RunFailed, match=f"could not save {tmp_path}/target/x"), whole_folder(tmp_path / "target") as at:
        raise RunFailed(f"could not save {at}/x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    for taken in (tmp_path, tmp_path / "a"):
        with pytest.raises(InputError, match=f"target={taken} is there already"):
            check_vacant(taken, 0, "target")
    check_vacant(tmp_path / "b", 0, "target")


def test_a_disk_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 3_000_000_000))
    with pytest.raises(InputError, match=r"target=.* needs 3\.5 GB and .* has 3\.0 GB free"):
        check_vacant(tmp_path / "new", 3_500_000_000, "target")
    check_vacant(tmp_path / "new", 2_500_000_000, "target")
