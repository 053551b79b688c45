"""A synthetic language with labelled domains that differ only in how words follow one another: `data=domains`.

Every domain is a first-order Markov chain over W words. The shared chain follows word i with pi_j(i), chosen with
probability w_j, where each pi_j is a random permutation. A share `separability` of the words, the ambiguous ones,
swaps roles: in domain d word i is continued as word tau_d(i) is in the shared chain,

    P_d(i -> k) = sum_j w_j [k = pi_j(tau_d(i))],    tau_d = d steps round a cycle of the ambiguous words, else identity

which is doubly stochastic: in every domain, at every separability, words are equally frequent and the entropy rate is
the same. A word alone never tells the domain, only what followed it does, and separability changes nothing but what
knowing the domain is worth, about `separability` * ln(num_domains) nats a word. At 0 the labels are attached to text
that does not depend on them: the structure-free control, with the same labels, lengths and random choices.
`private_words` is the lexical dial: that share of the words is spelled differently in every domain.

Sizes: D domains, W words a domain, J choices after a word, N documents, T words a document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from chronomoe.data.document import Document
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError

CHOICE_WEIGHTS = np.array([12, 6, 4, 3]) / 25
"""How likely the first, second, ... continuation of a word is: as 1/rank."""
CHUNK = 1000
"""Documents drawn from one random stream, so that asking for more leaves the first ones as they are."""
SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]


class DomainLanguage(NamedTuple):
    followers_DWJ: np.ndarray
    """Place (0 to W-1) of each continuation of the word at a place."""
    words_DW: np.ndarray
    """Number of the word at a place; domains share it unless the word is private."""

    @property
    def num_words(self) -> int:
        """Different words over all domains."""
        return int(self.words_DW.max()) + 1


class WordLosses(NamedTuple):
    """Least loss in nats a word, within a document, of a predictor that knows the previous word and ..."""

    informed: float
    """... the domain: the entropy rate, mean over domains of H(next | previous)."""
    blind: float
    """... not the domain: H(next | previous) of all domains mixed. The gap is I(domain; next | previous)."""
    unigram: float
    """Without the previous word either: the entropy of the words."""


def signature(settings: DataSettings) -> Any:
    if settings.max_documents is None:
        raise InputError("data.max_documents is missing: data=domains writes that many, data.max_documents=6000")
    if settings.max_documents < 2 * settings.num_domains:
        raise InputError(
            f"data.max_documents={settings.max_documents} is too few for data.num_domains={settings.num_domains}: "
            f"the least is two a domain, {2 * settings.num_domains}"
        )
    return [
        settings.num_domains,
        settings.separability,
        settings.private_words,
        settings.num_words,
        settings.document_words,
        settings.domains_seed,
    ]


def documents(settings: DataSettings) -> Iterator[Document]:
    """`max_documents` documents of `document_words` words, the domains in turn."""
    assert settings.max_documents is not None  # signature() has checked it
    language = make_language(settings)
    spelled = np.array([" " + word for word in spell(language.num_words)], dtype=object)
    digits = len(str(settings.num_domains - 1))
    for start in range(0, settings.max_documents, CHUNK):
        domains_N = np.arange(start, start + CHUNK) % settings.num_domains
        rng = np.random.default_rng([settings.domains_seed, 1 + start // CHUNK])
        words_NT = draw_words(language, domains_N, settings.document_words, rng)
        for number in range(start, min(start + CHUNK, settings.max_documents)):
            domain = f"domain_{number % settings.num_domains:0{digits}}"
            yield Document("".join(spelled[words_NT[number - start]]), domain, f"domains:{number}")


def make_language(settings: DataSettings) -> DomainLanguage:
    """The chains and vocabularies of all domains. The shared chain and the order in which words become ambiguous
    depend on the seed alone, so a higher separability adds ambiguous words to those of a lower one."""
    rng = np.random.default_rng([settings.domains_seed, 0])
    num_words = settings.num_words
    shared_WJ = np.stack([rng.permutation(num_words) for _ in CHOICE_WEIGHTS], axis=1)
    ambiguous = rng.permutation(num_words)[: round(settings.separability * num_words)]
    roles_DW = np.tile(np.arange(num_words), (settings.num_domains, 1))
    for domain, roles_W in enumerate(roles_DW):
        roles_W[ambiguous] = np.roll(ambiguous, -domain)

    num_private = round(settings.private_words * num_words)
    words_DW = np.tile(np.arange(num_words), (settings.num_domains, 1))
    words_DW[:, num_words - num_private :] += num_private * np.arange(settings.num_domains)[:, None]
    return DomainLanguage(shared_WJ[roles_DW], words_DW)


def draw_words(
    language: DomainLanguage, domains_N: np.ndarray, document_words: int, rng: np.random.Generator
) -> np.ndarray:
    """Word numbers, int64 [N, T]: one document for each of `domains_N`, starting anywhere.

    What is drawn from `rng` does not depend on the domains.
    """
    places_N = rng.integers(language.words_DW.shape[1], size=len(domains_N))
    choices_TN = rng.choice(len(CHOICE_WEIGHTS), p=CHOICE_WEIGHTS, size=(document_words, len(domains_N)))
    words_TN = np.empty((document_words, len(domains_N)), dtype=np.int64)
    for words_N, choices_N in zip(words_TN, choices_TN, strict=True):
        words_N[:] = language.words_DW[domains_N, places_N]
        places_N = language.followers_DWJ[domains_N, places_N, choices_N]
    return words_TN.T


def spell(num_words: int) -> list[str]:
    """Distinct words of equally many syllables, so that none begins another."""
    size = len(SYLLABLES)
    words = [""]
    for _ in range(max(2, math.ceil(math.log(num_words) / math.log(size)))):
        words = [word + SYLLABLES[(turn + 7 * i) % size] for turn in range(size) for i, word in enumerate(words)]
        words = words[:num_words]
    return words


def word_losses(language: DomainLanguage) -> WordLosses:
    """Exact, from H(next | previous) = H(previous, next) - H(previous); repeated continuations are merged."""
    num_domains, num_places = language.words_DW.shape
    previous_DWJ = np.broadcast_to(language.words_DW[..., None], language.followers_DWJ.shape)
    next_DWJ = np.stack([words_W[followers] for words_W, followers in zip(*language[::-1], strict=True)])
    pairs_DWJ = previous_DWJ * language.num_words + next_DWJ
    mass_DWJ = np.broadcast_to(CHOICE_WEIGHTS / num_places, pairs_DWJ.shape)
    informed = np.mean([_entropy(pairs, mass) for pairs, mass in zip(pairs_DWJ, mass_DWJ, strict=True)])
    unigram = _entropy(previous_DWJ, mass_DWJ / num_domains)
    blind = _entropy(pairs_DWJ, mass_DWJ / num_domains) - unigram
    return WordLosses(float(informed) - math.log(num_places), blind, unigram)


def token_loss(word_loss: float, first_word_loss: float, document_words: int) -> float:
    """Nats a token of packed documents whose words are all single tokens, for a predictor of `word_loss` a word.

    A document of T words is 1 first word, T - 1 following ones, and one end that comes after any word with chance 1/T.
    """
    ends = math.log(document_words) + (document_words - 1) * math.log(document_words / (document_words - 1))
    return (first_word_loss + (document_words - 1) * word_loss + ends) / (document_words + 1)


def _entropy(outcomes: np.ndarray, mass: np.ndarray) -> float:
    """In nats, the mass of equal outcomes added up; the masses sum to 1."""
    _, index = np.unique(outcomes, return_inverse=True)
    share = np.bincount(index.ravel(), weights=mass.ravel())
    return float(-(share * np.log(share)).sum())
