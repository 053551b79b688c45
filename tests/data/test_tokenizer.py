from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.data import hub
from chronomoe.data.tokenizer import (
    END_OF_DOCUMENT,
    check_vocabulary,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from chronomoe.settings import InputError

TEXTS = ["The clock ticks and the router waits. " * 20, "def tick(self):\n    return self.clock + 1\n" * 20]
LANGUAGE = train_tokenizer(TEXTS, 320)


@given(text=st.text(max_size=200))
def test_any_text_comes_back_from_its_tokens(text):
    [ids] = encode(LANGUAGE.tokenizer, [text])
    assert LANGUAGE.tokenizer.decode(ids, skip_special_tokens=False) == text


def test_training_is_deterministic_and_shortens_text():
    assert train_tokenizer(TEXTS, 320).tokenizer.to_str() == LANGUAGE.tokenizer.to_str()
    [ids] = encode(LANGUAGE.tokenizer, TEXTS[:1])
    assert len(ids) < len(TEXTS[0]) / 2


def test_a_short_text_makes_a_smaller_vocabulary_than_asked_for():
    assert 257 < train_tokenizer(["tick tock tick tock"], 4096).vocab_size < 270
    assert train_tokenizer(TEXTS, 290).vocab_size == 290


def test_the_end_of_document_token_written_in_a_text_is_only_text():
    [ids] = encode(LANGUAGE.tokenizer, [f"before {END_OF_DOCUMENT} after"])
    assert LANGUAGE.eos_id not in ids


def test_a_saved_tokenizer_loads_here_and_in_transformers(tmp_path):
    save_tokenizer(LANGUAGE, tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.eos_id, loaded.vocab_size) == (LANGUAGE.eos_id, LANGUAGE.vocab_size)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXTS[1])["input_ids"] == next(encode(loaded.tokenizer, [TEXTS[1]]))
    assert theirs.eos_token_id == LANGUAGE.eos_id


def test_the_end_of_document_token_comes_from_the_tokenizers_own_configuration(tmp_path):
    LANGUAGE.tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "c"}}))
    assert load_tokenizer(str(tmp_path)).eos_id == LANGUAGE.tokenizer.token_to_id("c")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(InputError, match="no entry '</s>'"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "{}"], ids=["missing", "broken", "other"])
def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"data.tokenizer=.*tokenizer.json cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_is_neither_a_folder_nor_on_the_hub_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"data.tokenizer=owner/absent is no folder") as error:
        load_tokenizer("owner/absent")
    assert "\n" not in str(error.value)


def test_the_model_must_have_a_row_for_every_token():
    check_vocabulary(4096, 4096)
    with pytest.raises(InputError, match=r"model.vocab_size=4096 .* 4097 .* model.vocab_size=4160"):
        check_vocabulary(4097, 4096)


def test_training_shows_no_progress_bar_in_a_log(monkeypatch, capfd):
    assert not sys.stderr.isatty()
    train_tokenizer(TEXTS, 300)
    assert capfd.readouterr().err == ""
