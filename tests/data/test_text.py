from __future__ import annotations

import json
from pathlib import Path

import pytest

from chronomoe.data import text
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError


def read(path: Path | str, **overrides: str) -> list[tuple[str, str]]:
    settings = DataSettings(source="text", path=str(path), **overrides)
    return [(document.text, document.domain) for document in text.documents(settings)]


def test_a_file_a_folder_and_a_glob_are_read_in_sorted_order(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name, content in {"b.txt": "B", "a.md": "A", "deep/c.py": "C", "x.csv": "X", ".hidden/h.txt": "H"}.items():
        (tmp_path / name).write_text(content)
    assert read(tmp_path / "b.txt") == [("B", "prose")]
    assert read(tmp_path) == [("A", "prose"), ("B", "prose"), ("C", "code")]
    assert read(tmp_path / "**" / "*.py") == [("C", "code")]


def test_each_json_line_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "one\\ntwo"}\n\n{"body": "three", "n": 1}\n')
    assert read(path, text_field="body") == [("one\ntwo", "prose"), ("three", "prose")]


def test_a_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read(tmp_path) == [("one\ntwo\n", "prose")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", r"a\.csv: no file ends in \.txt, \.md, \.py, \.jsonl"),
        ("a.txt", b"\xff\xfe\x00\x01", r"a\.txt is not UTF-8"),
        ("a.txt", b"one\x00two", r"a\.txt is binary"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "x", "id": 1}', r"data\.text_field=text: .*a\.jsonl:2.*\(body, id\)"),
        ("a.jsonl", b'{"text": 3}', r"data\.text_field=text: .*a\.jsonl:1"),
        ("a.jsonl", b'["text"]', r"a\.jsonl:1.*a list, not an object"),
        ("a.jsonl", json.dumps({"text": "\ud800"}).encode(), r"a\.jsonl:1 holds half of a surrogate pair"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["", "absent.txt", "absent/*.txt"])
def test_a_missing_path_is_refused_before_anything_is_read(path):
    with pytest.raises(InputError, match=r"data.path"):
        text.signature(DataSettings(source="text", path=path))


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file ends in"):
        text.signature(DataSettings(source="text", path=str(tmp_path)))


def test_the_signature_changes_when_a_file_does(tmp_path):
    settings = DataSettings(source="text", path=str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    before = text.signature(settings)
    assert text.signature(settings) == before
    (tmp_path / "a.txt").write_text("one more")
    assert text.signature(settings) != before
