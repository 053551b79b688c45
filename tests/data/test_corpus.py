from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.data.corpus import SOURCES, hold_out, read_documents
from chronomoe.data.document import Document
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError


def corpus(num_prose: int = 40, num_code: int = 20) -> list[Document]:
    """Each code file comes with the prose cut out of it, as in the standard library."""
    prose = [Document(f"prose {i}", "prose", f"p{i}") for i in range(num_prose)]
    code = [[Document(f"code {i}", "code", f"c{i}"), Document(f"about {i}", "prose", f"c{i}")] for i in range(num_code)]
    return prose + [document for pair in code for document in pair]


@given(num_prose=st.integers(0, 60), num_code=st.integers(2, 60), fraction=st.floats(0.001, 0.5))
def test_a_document_is_never_split_between_train_and_validation(num_prose, num_code, fraction):
    documents = corpus(num_prose, num_code)
    train, val = hold_out(documents, fraction)
    assert train
    assert val
    assert sorted(train + val) == sorted(documents)
    assert not {document.origin for document in train} & {document.origin for document in val}


def test_each_domain_keeps_its_share_in_validation():
    _, val = hold_out(corpus(num_prose=80, num_code=40), 0.1)
    origins = {document.origin for document in val}
    assert sorted(origin[0] for origin in origins) == ["c"] * 4 + ["p"] * 8


def test_the_split_depends_on_the_texts_and_not_on_their_order_or_names():
    documents = corpus(num_code=0)
    renamed = [document._replace(origin=f"elsewhere/{document.origin}") for document in documents]
    random.Random(0).shuffle(renamed)
    assert {document.text for document in hold_out(documents, 0.2)[1]} == {d.text for d in hold_out(renamed, 0.2)[1]}


def test_a_single_document_is_cut_at_a_blank_line_before_its_last_part():
    text = "\n\n".join(f"Paragraph {i} of a book." for i in range(100))
    [head], [tail] = hold_out([Document(text, "prose", "book.txt")], 0.1)
    assert head.text + tail.text == text
    assert tail.text.startswith("Paragraph")
    assert 0.1 <= len(tail.text) / len(text) < 0.12


@pytest.mark.parametrize("text", ["word " * 1000, "line\n" * 1000, "w" * 5000], ids=["words", "lines", "one word"])
def test_a_single_document_without_blank_lines_is_cut_near_its_share(text):
    [head], [tail] = hold_out([Document(text, "prose", "book.txt")], 0.1)
    assert head.text + tail.text == text
    assert len(tail.text) == 500


def test_copies_of_a_document_are_read_once_and_blank_ones_not_at_all(monkeypatch):
    documents = [Document(text, "prose", str(i)) for i, text in enumerate(["one", " \n", "two", "one", "three"])]
    monkeypatch.setitem(SOURCES, "text", SOURCES["text"]._replace(documents=lambda settings: iter(documents)))
    assert [d.text for d in read_documents(DataSettings(source="text"))] == ["one", "two", "three"]
    assert [d.text for d in read_documents(DataSettings(source="text", max_documents=2))] == ["one", "two"]


def test_a_corpus_without_text_is_refused(monkeypatch):
    monkeypatch.setitem(SOURCES, "text", SOURCES["text"]._replace(documents=lambda settings: iter([])))
    with pytest.raises(InputError, match=r"data.source=text: the documents hold no text"):
        read_documents(DataSettings(source="text"))


def test_documents_of_one_file_cannot_be_divided():
    with pytest.raises(InputError, match=r"data.max_documents=2"):
        hold_out(corpus(num_prose=0, num_code=1), 0.1)
