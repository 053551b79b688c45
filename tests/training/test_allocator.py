"""Asking glibc to keep memory, and doing without where there is none."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from chronomoe.training.allocator import M_MMAP_MAX, M_TRIM_THRESHOLD, NEVER, keep_freed_memory

PROGRAM = """
import ctypes
from chronomoe.training.allocator import keep_freed_memory
assert keep_freed_memory() is True
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p
before = libc.sbrk(ctypes.c_ssize_t(0))
block = libc.malloc(ctypes.c_size_t(2**26))
held = libc.sbrk(ctypes.c_ssize_t(0))
assert held - before >= 2**26, "not from the heap"
libc.free(ctypes.c_void_p(block))
assert libc.sbrk(ctypes.c_ssize_t(0)) == held, "handed back"
"""


def pretend(monkeypatch: pytest.MonkeyPatch, library: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_a_large_block_comes_from_the_heap_and_stays_there(python: Callable[..., Any]) -> None:
    """In a process of its own, for the setting cannot be taken back."""
    process = python("-c", PROGRAM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


@pytest.mark.parametrize("error", [OSError, TypeError])  # no such library; what Windows says to None
def test_where_no_library_can_be_opened_it_says_so(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(name: Any) -> Any:
        raise error

    pretend(monkeypatch, refuse)
    assert keep_freed_memory() is False


def test_without_mallopt_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


@pytest.mark.parametrize("refused", [None, M_MMAP_MAX, M_TRIM_THRESHOLD])
def test_it_asks_for_both_and_says_whether_both_were_granted(
    monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    asked = {}

    def mallopt(parameter: int, value: int) -> int:
        asked[parameter] = value
        return int(parameter != refused)

    pretend(monkeypatch, lambda name: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() is (refused is None)
    if refused is None:
        assert asked == {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER}
