"""Margins and surprisal against softmax by hand, and which texts have broken down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chronomoe.session.text_signals import JUDGED_FROM, distinct_4, is_degenerate, read_text


def test_signals_are_the_softmax_by_hand() -> None:
    logits_SV = 3 * torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(12, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    found = read_text(logits_SV, ids)
    p_SV = logits_SV.double().softmax(dim=-1).numpy()
    sorted_SV = np.sort(p_SV)
    own_S = p_SV[np.arange(20), ids]
    np.testing.assert_allclose(found.surprisal, -np.log(own_S), rtol=1e-5)
    np.testing.assert_allclose(found.p1, sorted_SV[:, -1], rtol=1e-5)
    np.testing.assert_allclose(found.p2, sorted_SV[:, -2], rtol=1e-5)
    np.testing.assert_allclose(found.m, sorted_SV[:, -1] - sorted_SV[:, -2], atol=1e-6)
    np.testing.assert_allclose(found.m_nats, np.log(sorted_SV[:, -1] / sorted_SV[:, -2]), atol=1e-5)
    np.testing.assert_allclose(found.m_selected, sorted_SV[:, -1] - own_S, atol=1e-6)


def test_the_prototypes_margin_is_zero_at_the_likeliest_token_and_the_measured_one_is_not() -> None:
    logits_SV = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    found = read_text(logits_SV, logits_SV.argmax(dim=-1).tolist())
    assert (found.m_selected == 0).all()
    assert (found.m > 0).all()


def test_margins_at_their_ends() -> None:
    certain, even = torch.tensor([[200.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert read_text(certain, [0]).m[0] == 1.0
    assert read_text(even, [0]).m[0] == 0.0
    assert read_text(even, [0]).surprisal[0] == pytest.approx(math.log(3))


def test_distinct_4_of_an_example() -> None:
    assert distinct_4([1, 2, 3, 4]) == 1.0
    assert distinct_4([1, 2, 3, 4, 1, 2, 3, 4, 1]) == pytest.approx(4 / 6)


def varied(length: int) -> list[int]:
    return torch.randint(1000, (length,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize(
    ("generated", "broken"),
    [
        ([5] * 40, True),
        ([1, 2, 3, 4] * 12, True),
        (varied(200), False),
        (varied(60) + [7, 8, 9, 10] * 25, True),
        ([7, 8, 9, 10] * 25 + varied(100), False),
        ([t for n in range(8) for t in (1, 2, 3, 4, 100 + n, 200 + n, 300 + n, 400 + n)], True),
        ([t for n in range(7) for t in (1, 2, 3, 4, 100 + n, 200 + n, 300 + n, 400 + n)], False),
    ],
    ids=["one token", "a loop", "varied", "a loop at the end", "a loop long ago", "one 4-gram 8 times", "7 times"],
)
def test_which_texts_are_degenerate(generated: list[int], broken: bool) -> None:
    assert is_degenerate(generated) is broken


def test_no_text_is_judged_before_it_is_long_enough() -> None:
    assert not is_degenerate([5] * (JUDGED_FROM - 1))
