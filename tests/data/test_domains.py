from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.config import compose_config
from chronomoe.data.domains import (
    CHOICE_WEIGHTS,
    DomainLanguage,
    documents,
    draw_words,
    make_language,
    signature,
    spell,
    token_loss,
    word_losses,
)
from chronomoe.data.packing import prepare_corpus
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError

DIALS = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 0.25), (0.5, 0.25), (1.0, 1.0)]


def settings(**overrides: object) -> DataSettings:
    values: dict = {"source": "domains", "num_words": 32, "document_words": 64, "max_documents": 200}
    return DataSettings(**(values | overrides))


def chains(language: DomainLanguage) -> np.ndarray:
    """P_d(next | previous) over the words of all domains, [D, words, words], added up one continuation at a time."""
    num_domains, num_places, num_choices = language.followers_DWJ.shape
    chain = np.zeros((num_domains, language.num_words, language.num_words))
    for domain in range(num_domains):
        for place in range(num_places):
            for choice in range(num_choices):
                follower = language.words_DW[domain, language.followers_DWJ[domain, place, choice]]
                chain[domain, language.words_DW[domain, place], follower] += CHOICE_WEIGHTS[choice]
    return chain


def sample(language: DomainLanguage, num_documents: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Domains [N] and words [N, 64] of documents, the domains in turn."""
    domains = np.arange(num_documents) % len(language.words_DW)
    return domains, draw_words(language, domains, 64, np.random.default_rng(seed))


def pair_counts(words: np.ndarray, num_words: int) -> np.ndarray:
    """[documents, words * words]"""
    pairs = words[:, :-1] * num_words + words[:, 1:]
    return np.stack([np.bincount(row, minlength=num_words**2) for row in pairs])


def bigram_accuracy(language: DomainLanguage) -> float:
    """Share of held-out documents whose domain is the most likely one under bigram counts of 400 others."""
    domains, words = sample(language, 600)
    counts = pair_counts(words, language.num_words)
    seen = np.stack([counts[:400][domains[:400] == domain].sum(0) for domain in range(len(language.words_DW))]) + 0.01
    guesses = (counts[400:] @ np.log(seen / seen.sum(1, keepdims=True)).T).argmax(1)
    return float((guesses == domains[400:]).mean())


def test_at_separability_zero_the_text_is_the_same_whatever_the_labels():
    texts = {n: [d.text for d in documents(settings(separability=0.0, num_domains=n))] for n in (2, 5)}
    assert texts[2] == texts[5]
    assert texts[2] != [d.text for d in documents(settings(separability=1.0, num_domains=2))]


def permutations_above(language: DomainLanguage, seed: int) -> int:
    """How many of 49 permutations of the document labels depend on the bigrams (chi-square) as much as the labels."""
    domains, words = sample(language, 400, seed)
    counts = pair_counts(words, language.num_words).astype(float)
    counts = counts[:, counts.any(0)]
    rng = np.random.default_rng(seed)
    labels = np.stack([domains, *(rng.permutation(domains) for _ in range(49))])
    tables = np.stack([(labels == domain) @ counts for domain in range(4)])
    expected = counts.sum(0) / 4
    statistic = (np.square(tables - expected) / expected).sum((0, 2))
    return int((statistic[1:] >= statistic[0]).sum())


def test_labels_and_bigrams_are_independent_at_separability_zero_and_only_there():
    control, separable = (make_language(settings(separability=value)) for value in (0.0, 0.1))
    assert 15 < np.mean([permutations_above(control, seed) for seed in range(12)]) < 35  # 24.5 expected, sd 4
    assert [permutations_above(separable, seed) for seed in range(3)] == [0, 0, 0]


def test_a_bigram_classifier_recovers_the_domain_as_far_as_the_domains_are_separable():
    accuracy = [bigram_accuracy(make_language(settings(separability=value))) for value in (0.0, 0.1, 1.0)]
    assert accuracy[0] == pytest.approx(0.25, abs=0.1)
    assert accuracy[0] + 0.2 < accuracy[1] < accuracy[2]
    assert accuracy[2] == 1.0


def test_what_the_domain_is_worth_grows_in_proportion_to_separability():
    dials = [0.0, 0.25, 0.5, 0.75, 1.0]
    losses = [word_losses(make_language(settings(num_words=2048, separability=dial))) for dial in dials]
    gaps = [loss.blind - loss.informed for loss in losses]
    assert gaps[0] == pytest.approx(0, abs=1e-9)
    assert gaps == pytest.approx([dial * math.log(4) for dial in dials], rel=0.01, abs=1e-9)
    assert [loss.informed for loss in losses] == pytest.approx([losses[0].informed] * 5, abs=1e-9)


@pytest.mark.parametrize(("separability", "private_words"), DIALS)
def test_every_word_of_a_domain_is_equally_frequent(separability, private_words):
    language = make_language(settings(separability=separability, private_words=private_words))
    for words, chain in zip(language.words_DW, chains(language), strict=True):
        uniform = np.bincount(words, minlength=language.num_words) / 32
        assert set(uniform) <= {0, 1 / 32}
        assert uniform @ chain == pytest.approx(uniform)


def test_documents_start_anywhere_and_use_every_word_alike():
    language = make_language(settings())
    domains, words = sample(language, 4000)
    for domain in range(4):
        for drawn in (words[domains == domain, 0], words[domains == domain]):
            counts = np.bincount(drawn.ravel(), minlength=32)
            expected = drawn.size / 32
            assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize(("separability", "private_words"), DIALS)
def test_losses_agree_with_the_full_transition_matrices_and_with_monte_carlo(separability, private_words):
    language = make_language(settings(separability=separability, private_words=private_words))
    losses, chain = word_losses(language), chains(language)
    share = np.stack([np.bincount(words, minlength=language.num_words) / 32 for words in language.words_DW])
    joint = (share[:, :, None] * chain).mean(0)
    unigram = share.mean(0)

    def cross_entropy(joint: np.ndarray, conditional: np.ndarray) -> float:
        return float(-(joint * np.log(np.where(conditional > 0, conditional, 1))).sum())

    assert losses.informed == pytest.approx(
        np.mean([cross_entropy(share[d, :, None] * chain[d], chain[d]) for d in range(4)])
    )
    assert losses.blind == pytest.approx(cross_entropy(joint, joint / unigram[:, None]))
    assert losses.unigram == pytest.approx(cross_entropy(unigram, unigram))
    assert losses.informed <= losses.blind + 1e-9 <= losses.unigram

    domains, words = sample(language, 4000)
    previous, following = words[:, :-1], words[:, 1:]
    for expected, seen in (
        (losses.informed, chain[domains[:, None], previous, following]),
        (losses.blind, (joint / unigram[:, None])[previous, following]),
        (losses.unigram, unigram[following]),
    ):
        surprise = -np.log(seen).mean(1)
        assert surprise.mean() == pytest.approx(expected, abs=4 * surprise.std() / math.sqrt(len(words)) + 1e-9)


def test_a_higher_separability_makes_more_words_ambiguous_and_keeps_those_that_were():
    def ambiguous(separability: float) -> set[int]:
        followers = make_language(settings(separability=separability, num_words=200)).followers_DWJ
        return set(np.flatnonzero((followers != followers[0]).any(axis=(0, 2))).tolist())

    found = [ambiguous(value) for value in (0.0, 0.25, 0.5, 1.0)]
    assert [len(words) for words in found] == [0, 50, 100, 200]
    assert found[1] < found[2] < found[3]


@pytest.mark.parametrize(("private_words", "num_private"), [(0.0, 0), (0.25, 8), (1.0, 32)])
def test_private_words_belong_to_one_domain_and_shared_ones_to_all(private_words, num_private):
    language = make_language(settings(private_words=private_words, num_domains=3))
    owners = np.bincount(language.words_DW.ravel())
    assert language.num_words == len(owners) == 32 + 2 * num_private
    assert sorted(owners) == [1] * (3 * num_private) + [3] * (32 - num_private)


def test_where_every_word_is_private_the_domain_is_never_in_doubt():
    losses = word_losses(make_language(settings(private_words=1.0)))
    assert losses.blind == pytest.approx(losses.informed)
    assert losses.unigram == pytest.approx(math.log(32) + math.log(4))


def test_the_text_is_a_function_of_the_settings():
    first = list(documents(settings()))
    assert first == list(documents(settings()))
    assert [d.text for d in first] != [d.text for d in documents(settings(domains_seed=1))]
    assert first == list(documents(settings(max_documents=1500)))[:200]


def test_no_stretch_of_documents_repeats_another():
    texts = [document.text for document in documents(settings(max_documents=2500, document_words=16))]
    assert len(set(texts)) == 2500


def test_domains_have_equally_many_documents_of_one_length():
    found = list(documents(settings(num_domains=12, max_documents=240)))
    labels, counts = np.unique([document.domain for document in found], return_counts=True)
    assert labels.tolist() == [f"domain_{number:02}" for number in range(12)]
    assert set(counts) == {20}
    assert {len(document.text.split()) for document in found} == {64}


@pytest.mark.parametrize("change", ["num_domains", "separability", "private_words", "num_words", "document_words"])
def test_the_signature_changes_with_the_text(change):
    other = {"num_domains": 3, "separability": 0.5, "private_words": 0.5, "num_words": 33, "document_words": 65}
    assert signature(settings()) != signature(settings(**{change: other[change]}))


@given(num_words=st.integers(1, 7000))
def test_no_word_begins_another(num_words):
    words = spell(num_words)
    assert len(set(words)) == num_words
    assert len({len(word) for word in words}) == 1


def test_every_word_becomes_one_token_and_the_packed_row_has_the_stated_entropy(tmp_path: Path):
    config = compose_config(["data=domains", "data.max_documents=1200", "data.val_sequences=32"]).data
    config.cache_dir = str(tmp_path)
    corpus = prepare_corpus(config, model_vocab_size=4096)
    tokens = corpus.train_tokens.astype(np.int64)
    assert len(tokens) == 129 * len(corpus.train_documents.starts)
    assert len(np.unique(tokens)) == config.num_words + 1

    _, dense = np.unique(tokens, return_inverse=True)
    pairs = np.bincount(dense[:-1] * 65 + dense[1:], minlength=65**2).reshape(65, 65) / (len(tokens) - 1)
    entropy = -(pairs * np.log(np.where(pairs > 0, pairs / pairs.sum(1, keepdims=True), 1))).sum()
    losses = word_losses(make_language(config))
    assert entropy == pytest.approx(token_loss(losses.blind, losses.unigram, config.document_words), rel=0.01)


def test_the_default_corpus_serves_a_default_run():
    config = compose_config(["data=domains"])
    num_tokens = config.data.max_documents * (config.data.document_words + 1)
    assert num_tokens * (1 - config.data.val_fraction) > config.trainer.max_steps * config.data.batch_size * 128
    assert num_tokens * config.data.val_fraction > config.data.val_sequences * config.data.seq_len


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=domains", "data.num_domains=1"], r"data\.num_domains=1 is too small: the least is 2"),
        (["data=domains", "data.separability=1.5"], r"data\.separability=1\.5 is too large: the most is 1"),
        (["data=domains", "data.separability=-0.1"], r"data\.separability=-0\.1 is too small"),
        (["data=domains", "data.private_words=2"], r"data\.private_words=2\.0 is too large"),
        (["data.separability=0"], r"data\.separability has no meaning for data\.source=stdlib: add data=domains"),
        (["data=text", "data.path=x", "data.num_words=99"], r"data\.num_words has no meaning .* add data=domains"),
        (["data.domains_seed=3"], r"data\.domains_seed has no meaning for data\.source=stdlib"),
        (["data=domains", "data.path=x"], r"data\.path has no meaning for data\.source=domains: add data=text"),
    ],
)
def test_a_value_out_of_range_or_for_another_source_is_refused(overrides, message):
    with pytest.raises(InputError, match=message) as error:
        compose_config(overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("max_documents", "message"),
    [(None, r"data\.max_documents is missing: .*data\.max_documents=6000"), (7, r"data\.max_documents=7 .* two .* 8")],
)
def test_too_few_documents_are_refused(max_documents, message):
    with pytest.raises(InputError, match=message):
        signature(settings(max_documents=max_documents))
