"""Encoding word by word is exact: it gives, for every text, what the tokenizer gives for the whole text."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from chronomoe.data import words
from chronomoe.data.tokenizer import END_OF_DOCUMENT, encode, train_tokenizer
from chronomoe.data.words import TextEncoder, WordEncoder, choose_encoder

TEXTS = [
    "The clock ticks, doesn't it?  And the router waits. " * 20,
    "def tick(self):\n    return self.clock + 1\n" * 20,
]
TOKENIZER = train_tokenizer(TEXTS, 320).tokenizer
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u200b", "\u2028", "\u3000", "\u180e"]
PARTS = [*SPACES, "the", "tick", "'s", "'", "_", "12", "²", "é", "e\u0301", "🕰", "--", END_OF_DOCUMENT, "\0"]

a_text = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PARTS), max_size=12).map("".join))


def whole(texts: list[str]) -> list[list[int]]:
    return list(encode(TOKENIZER, texts))


def lists(rows) -> list[list[int]]:
    return [row.tolist() for row in rows]


@given(first=st.lists(a_text, min_size=1, max_size=6), second=st.lists(a_text, min_size=1, max_size=3))
def test_word_by_word_is_bit_for_bit_the_whole_text(first, second):
    encoder = WordEncoder(TOKENIZER)
    assert lists(encoder(first)) == whole(first)
    assert lists(encoder(second)) == whole(second)  # with what it knows by now


@given(texts=st.lists(a_text, min_size=1, max_size=6))
def test_forgetting_words_changes_nothing(texts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "MAX_WORDS", 2)
        patch.setattr(words, "JOINED_WORDS", 2)
        encoder = WordEncoder(TOKENIZER)
        for text in texts:
            assert lists(encoder([text])) == whole([text])


def test_every_separator_and_control_character_is_where_the_pretokenizer_sees_it():
    odd = [
        chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp", "Cc", "Cf")
    ]
    texts = [f"a{character} {character}b {character}{character}\n{character}" for character in odd]
    assert len(odd) > 200
    assert lists(WordEncoder(TOKENIZER)(texts)) == whole(texts)


def test_copies_of_a_word_are_encoded_once(monkeypatch):
    seen: list[str] = []

    def counting(tokenizer, texts):
        seen.extend(texts)
        return encode(tokenizer, texts)

    monkeypatch.setattr(words, "encode", counting)
    encoder = WordEncoder(TOKENIZER)
    encoder(["tick tock tick tock tick"])
    encoder(["tick tock tick"])
    assert seen == ["tick", " tock tick"]


def changed(**parts) -> Tokenizer:
    tokenizer = train_tokenizer(TEXTS, 300).tokenizer
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_added_token() -> Tokenizer:
    tokenizer = changed()
    tokenizer.add_tokens([AddedToken("router waits")])  # matched in a text, across a border of words
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        changed(pre_tokenizer=pre_tokenizers.Metaspace()),
        changed(normalizer=normalizers.NFC()),
        with_added_token(),
    ],
    ids=["prefix", "no_pattern", "metaspace", "normalizer", "added_token"],
)
def test_any_other_tokenizer_encodes_whole_texts(tokenizer):
    encoder = choose_encoder(tokenizer)
    assert isinstance(encoder, TextEncoder)
    assert lists(encoder(TEXTS)) == list(encode(tokenizer, TEXTS))


def test_the_trained_tokenizer_and_its_saved_copy_encode_words():
    for tokenizer in (TOKENIZER, Tokenizer.from_str(TOKENIZER.to_str())):
        assert isinstance(choose_encoder(tokenizer), WordEncoder)


def test_an_empty_text_has_no_tokens():
    assert [len(row) for row in WordEncoder(TOKENIZER)(["", "a", ""])] == [0, 1, 0]
    assert np.concatenate(WordEncoder(TOKENIZER)([""])).size == 0
