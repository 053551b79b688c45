"""What is compared: names, filters, and what happens to what is not installed."""

from __future__ import annotations

import pytest

from chronomoe.benchmark import systems
from chronomoe.benchmark.systems import choose, every_system
from chronomoe.settings import InputError


@pytest.fixture(autouse=True)
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "find_spec", lambda name: name)


def test_keys_are_distinct_and_ours_comes_with_control_on_and_off_in_both_dtypes() -> None:
    keys = [system.key for system in every_system()]
    assert len(set(keys)) == len(keys) == 16
    assert {f"chronomoe_{d}_{c}" for d in ("fp32", "bf16") for c in ("on", "off")} <= set(keys)


def test_neither_the_floor_nor_we_nor_a_peer_helped_by_our_settings_is_a_peer() -> None:
    others = {"chronomoe", "dense", "transformers grouped_mm kept"}
    assert {system.name for system in every_system() if not system.peer} == others
    assert "transformers grouped_mm" in {system.name for system in every_system() if system.peer}


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ([], 16),
        (["chronomoe"], 4),
        (["chronomoe_fp32"], 2),
        (["dense_bf16", "litgpt"], 3),
        (["transformers_grouped_mm"], 4),  # with what keeps freed memory
        (["transformers_grouped_mm_fp32"], 1),
    ],
)
def test_a_filter_is_a_key_or_how_keys_begin(words: list[str], number: int) -> None:
    assert len(choose(words)) == number


def test_an_unknown_system_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match="systems=megatron does not exist: there are chronomoe_fp32_on, "):
        choose(["chronomoe", "megatron"])


def test_what_is_missing_is_left_out_unless_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "find_spec", lambda name: None if name in ("litgpt", "st_moe_pytorch") else name)
    assert {system.name for system in choose([])} == {
        "chronomoe",
        "dense",
        "transformers eager",
        "transformers grouped_mm",
        "transformers grouped_mm kept",
    }
    with pytest.raises(InputError, match="litgpt_fp32 needs litgpt, which is not installed: pip install litgpt"):
        choose(["litgpt"])


def test_without_transformers_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systems, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[hf\]"'):
        choose([])
    assert len(choose(["chronomoe", "dense"])) == 6
