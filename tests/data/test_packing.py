from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from chronomoe.data import hub, packing, text, tokenizer
from chronomoe.data.corpus import hold_out, read_documents
from chronomoe.data.packing import PackedCorpus, prepare_corpus
from chronomoe.data.tokenizer import END_OF_DOCUMENT, encode, load_tokenizer, train_tokenizer
from chronomoe.settings import InputError


def texts_of(corpus: PackedCorpus, split: str) -> list[tuple[str, str]]:
    """The documents of a split as (text, domain), decoded from the memory map alone."""
    tokens, documents = getattr(corpus, f"{split}_tokens"), getattr(corpus, f"{split}_documents")
    ends = np.append(documents.starts[1:], len(tokens))
    assert (tokens[ends - 1] == corpus.eos_id).all()
    return [
        (corpus.tokenizer().decode(tokens[start : end - 1], skip_special_tokens=False), corpus.domains[domain])
        for start, end, domain in zip(documents.starts, ends, documents.domains, strict=True)
    ]


def files_in(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*")} if cache.exists() else set()


def test_the_memory_maps_hold_the_documents_text_and_domain(text_settings, folder):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    written = [(path.read_text(encoding="utf-8"), text.DOMAINS[path.suffix]) for path in sorted(folder.iterdir())]
    assert sorted(texts_of(corpus, "train") + texts_of(corpus, "val")) == sorted(written)


def test_no_document_is_on_both_sides_even_when_its_file_is_there_twice(text_settings, folder):
    for path in list(folder.glob("*.txt")):
        (folder / f"copy_{path.name}").write_bytes(path.read_bytes())
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    train, val = texts_of(corpus, "train"), texts_of(corpus, "val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == 24


def test_a_second_preparation_reads_nothing(text_settings, monkeypatch, capsys):
    first = prepare_corpus(text_settings(), model_vocab_size=512)
    assert "prepared text" in capsys.readouterr().err
    monkeypatch.delattr(packing, "read_documents")
    monkeypatch.delattr(packing, "train_tokenizer")
    monkeypatch.setattr(text, "open", None, raising=False)
    second = prepare_corpus(text_settings(seq_len=8, batch_size=2), model_vocab_size=512)
    assert second.directory == first.directory
    reported = capsys.readouterr()
    assert reported.out == ""
    assert len(reported.err.splitlines()) == 1
    assert "reused text" in reported.err


@pytest.mark.parametrize("change", [{"vocab_size": 310}, {"val_fraction": 0.3}, {"max_documents": 20}])
def test_what_changes_the_tokens_makes_another_corpus(text_settings, change):
    first = prepare_corpus(text_settings(), model_vocab_size=512)
    second = prepare_corpus(text_settings(**change), model_vocab_size=512)
    assert first.content_hash != second.content_hash


def test_the_same_text_elsewhere_is_the_same_corpus(text_settings, folder):
    first = prepare_corpus(text_settings(), model_vocab_size=512)
    moved = folder.rename(folder.with_name("moved"))
    assert prepare_corpus(text_settings(path=str(moved)), model_vocab_size=512).directory == first.directory


def test_a_changed_file_is_noticed(text_settings, folder):
    first = prepare_corpus(text_settings(), model_vocab_size=512)
    (folder / "00.txt").write_text("Something else entirely.\n")
    assert prepare_corpus(text_settings(), model_vocab_size=512).content_hash != first.content_hash


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_packing_leaves_the_old_cache_and_nothing_else(text_settings, tmp_path, monkeypatch, fault):
    prepare_corpus(text_settings(), model_vocab_size=512)
    before = files_in(tmp_path / "cache")

    def fail(*arguments):
        raise fault

    monkeypatch.setattr(packing, "save_tokenizer", fail)  # the tokens are written by then
    with pytest.raises((InputError, KeyboardInterrupt)) as error:
        prepare_corpus(text_settings(vocab_size=310), model_vocab_size=512)
    assert files_in(tmp_path / "cache") == before
    if isinstance(fault, OSError):
        assert "data.cache_dir=" in str(error.value)
        assert "No space left" in str(error.value)


def test_what_a_killed_process_left_is_cleared_away(text_settings, tmp_path):
    leftover = tmp_path / "cache" / "corpora" / ".unfinished-killed"
    leftover.mkdir(parents=True)
    (leftover / "train.tokens").write_bytes(b"half")
    prepare_corpus(text_settings(), model_vocab_size=512)
    assert not leftover.exists()


def test_a_cache_folder_that_cannot_be_made_is_named(text_settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data.cache_dir="):
        prepare_corpus(text_settings(cache_dir=str(tmp_path / "file")), model_vocab_size=512)


def test_the_unigram_is_the_smoothed_frequency_of_the_training_tokens(text_settings):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    log_probs = corpus.unigram_log_probs()
    assert log_probs.dtype == np.float32
    assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-5)
    for token in (corpus.eos_id, 50, corpus.vocab_size - 1):
        count = sum(int(seen) == token for seen in corpus.train_tokens)
        expected = np.log((count + 1) / (len(corpus.train_tokens) + corpus.vocab_size))
        assert log_probs[token] == pytest.approx(expected, rel=1e-6)


def test_long_documents_are_tokenised_in_pieces_without_losing_a_character(text_settings, folder, monkeypatch):
    monkeypatch.setattr(tokenizer, "PIECE_CHARS", 50)
    monkeypatch.setattr(packing, "BATCH_CHARS", 120)
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    written = sorted(path.read_text(encoding="utf-8") for path in folder.iterdir())
    assert sorted(text for split in ("train", "val") for text, _ in texts_of(corpus, split)) == written


def test_a_given_tokenizer_is_used_as_it_is(text_settings):
    trained = prepare_corpus(text_settings(), model_vocab_size=512)
    given = str(trained.directory / "tokenizer")
    corpus = prepare_corpus(text_settings(tokenizer=given, val_fraction=0.3), model_vocab_size=512)
    assert corpus.tokenizer().to_str() == trained.tokenizer().to_str()
    text, _ = texts_of(corpus, "train")[0]
    [ids] = encode(load_tokenizer(given).tokenizer, [text])
    assert corpus.train_tokens[: len(ids) + 1].tolist() == [*ids, corpus.eos_id]


def test_large_vocabularies_take_four_bytes_a_token(text_settings, tmp_path):
    trained = prepare_corpus(text_settings(), model_vocab_size=512)
    larger = trained.tokenizer()
    larger.add_tokens([f"<{number}>" for number in range(2**16)])
    (tmp_path / "large").mkdir()
    larger.save(str(tmp_path / "large" / "tokenizer.json"))
    corpus = prepare_corpus(text_settings(tokenizer=str(tmp_path / "large")), model_vocab_size=2**17)
    assert (trained.train_tokens.dtype, corpus.train_tokens.dtype) == (np.uint16, np.uint32)
    assert texts_of(corpus, "val") == texts_of(trained, "val")


def test_a_loader_process_receives_the_place_and_not_the_tokens(text_settings):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    sent = pickle.dumps(corpus)
    assert len(sent) < 1000
    assert (pickle.loads(sent).train_tokens == corpus.train_tokens).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 4096}, r"data\.batch_size=4096: .* sequences of data\.seq_len=16"),
        ({"val_sequences": 4096}, r"data\.val_sequences=4096: .* set data\.val_sequences=\d+ or"),
        ({"vocab_size": 600}, r"model\.vocab_size=512"),
        ({"tokenizer": "/absent/tokenizer"}, r"data\.tokenizer=/absent/tokenizer"),
    ],
)
def test_a_request_that_cannot_be_served_is_one_line(text_settings, monkeypatch, overrides, message):
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    with pytest.raises(InputError, match=message) as error:
        prepare_corpus(text_settings(**overrides), model_vocab_size=512)
    assert "\n" not in str(error.value)


def test_the_suggested_number_of_validation_sequences_works(text_settings):
    with pytest.raises(InputError) as error:
        prepare_corpus(text_settings(val_sequences=4096), model_vocab_size=512)
    suggested = int(str(error.value).split("set data.val_sequences=")[1].split()[0])
    prepare_corpus(text_settings(val_sequences=suggested), model_vocab_size=512)


@pytest.mark.parametrize("content", ["", " \n\n"], ids=["empty", "blank"])
def test_bad_text_leaves_no_corpus(text_settings, folder, tmp_path, content):
    for path in folder.iterdir():
        path.write_text(content)
    with pytest.raises(InputError, match="hold no text"):
        prepare_corpus(text_settings(), model_vocab_size=512)
    assert not list((tmp_path / "cache").rglob("*.tokens"))


@pytest.mark.parametrize("given", ["words", "whole texts"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_packed_bytes_are_those_of_the_plain_way(text_settings, tmp_path, monkeypatch, given, dtype):
    """One list of ids a document, in order, each closed by the end token."""
    monkeypatch.setattr(tokenizer, "PIECE_CHARS", 90)
    monkeypatch.setattr(packing, "BATCH_CHARS", 500)
    documents = read_documents(text_settings())
    splits = dict(zip(("train", "val"), hold_out(documents, 0.2), strict=True))
    language = train_tokenizer((document.text for document in splits["train"]), 300)
    if given == "whole texts":
        language.tokenizer.add_tokens(["the router"])
    if dtype == "<u4":
        language.tokenizer.add_special_tokens([f"<{number}>" for number in range(2**16)])
    packing.write_corpus(tmp_path, splits, language, "hash")

    corpus = PackedCorpus(tmp_path)
    counts = np.zeros(language.vocab_size, dtype=np.int64)
    for name, documents in splits.items():
        row, starts = [], []
        for document in documents:
            starts.append(len(row))
            for ids in encode(language.tokenizer, list(tokenizer.pieces(document.text))):
                row += ids
            row.append(language.eos_id)
        assert (tmp_path / f"{name}.tokens").read_bytes() == np.array(row, dtype=dtype).tobytes()
        assert getattr(corpus, f"{name}_documents").starts.tolist() == starts
        if name == "train":
            np.add.at(counts, row, 1)
    assert (np.load(tmp_path / "unigram_counts.npy") == counts).all()


def test_a_document_that_quotes_the_end_token_stays_one_document(text_settings, folder):
    (folder / "00.txt").write_text(f"one {END_OF_DOCUMENT} two\n")
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    assert (corpus.train_tokens == corpus.eos_id).sum() == len(corpus.train_documents.starts)
    assert any(END_OF_DOCUMENT in text for split in ("train", "val") for text, _ in texts_of(corpus, split))


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_token_is_labelled_with_its_document_and_domain(text_settings, split):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    tokens, documents = getattr(corpus, f"{split}_tokens"), getattr(corpus, f"{split}_documents")
    labels = corpus.label_tokens(split, np.arange(len(tokens)))
    number = 0
    for token, document, domain in zip(tokens, labels.documents, labels.domains, strict=True):
        assert (document, domain) == (number, documents.domains[number])
        number += token == corpus.eos_id  # the end-of-document token is its document's last
    assert number == len(documents.starts)
    assert {corpus.domains[domain] for domain in labels.domains} <= {"code", "prose"}


def test_labels_have_the_shape_of_the_blocks_asked_for(text_settings):
    corpus = prepare_corpus(text_settings(), model_vocab_size=512)
    blocks = np.array([[5], [0], [3]]) * 16 + np.arange(16)
    labels = corpus.label_tokens("train", blocks)
    flat = corpus.label_tokens("train", blocks.ravel())
    assert labels.documents.shape == labels.domains.shape == (3, 16)
    assert (labels.documents.ravel() == flat.documents).all()
    assert labels.domains.dtype == labels.documents.dtype == np.int64
