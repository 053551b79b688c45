from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chronomoe.data.settings import DataSettings

SENTENCE = "the router sends each token to two experts and waits for the slow lens to answer"


def prose(number: int, num_words: int = 120) -> str:
    """A distinct text for each number, with accents and an emoji to exercise the bytes."""
    vocabulary = SENTENCE.split()
    words = (vocabulary[(number * 7 + i * (number + 3)) % len(vocabulary)] for i in range(num_words))
    return f"Text {number}, déjà vu 🕰\n\n" + " ".join(words) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty text files and four Python files."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number:02}.txt").write_text(prose(number), encoding="utf-8")
    for number in range(4):
        (source / f"{number:02}.py").write_text(f"def f{number}(x):\n    return x + {number}\n" * 20, encoding="utf-8")
    return source


@pytest.fixture
def text_settings(folder: Path, tmp_path: Path) -> Callable[..., DataSettings]:
    """Settings that read `folder` into a cache of this test, with overrides."""

    def make(**overrides: object) -> DataSettings:
        values: dict = {
            "source": "text",
            "path": str(folder),
            "cache_dir": str(tmp_path / "cache"),
            "vocab_size": 300,
            "seq_len": 16,
            "batch_size": 4,
            "val_fraction": 0.2,
            "val_sequences": 4,
        }
        return DataSettings(**(values | overrides))

    return make
