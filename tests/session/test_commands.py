"""Exact words are commands, and nearly exact ones are texts."""

from __future__ import annotations

import pytest

from chronomoe.session.commands import WORDS, Command, parse

SAID = [(word, command) for command, words in WORDS.items() for word in words]


@pytest.mark.parametrize(("word", "command"), SAID)
def test_every_word_is_understood_in_any_case_and_with_space_around_it(word: str, command: Command) -> None:
    assert parse(word) is parse(f"  {word.upper()}\n") is command


@pytest.mark.parametrize(
    "text",
    [
        "continue.",
        "continue please",
        "multi step",
        "multistep  on",
        "/ multistep",
        "end the loop",
        "ending",
        "resets",
        "",
    ],
)
def test_what_is_nearly_a_command_is_a_text(text: str) -> None:
    assert parse(text) is Command.PERTURBATION


def test_no_word_means_two_commands() -> None:
    words = [word for word, _ in SAID]
    assert len(words) == len(set(words)) == 11
