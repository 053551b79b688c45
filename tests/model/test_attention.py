"""Attention against its equations, one head and one pair of positions at a time.

Axes: B batch, S sequence, C context, H query heads, G key-value heads, A head width, D model dim.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from chronomoe.model.attention import Attention, allowed_pairs, rotary_angles, rotate
from chronomoe.model.state import KeyValueCache

DIM, THETA, LENGTH = 24, 100.0, 7


def make_attention(num_heads: int, num_kv_heads: int) -> Attention:
    torch.manual_seed(0)
    attention = Attention(DIM, num_heads, num_kv_heads)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return attention


def rotate_pairs(x_A: Tensor, position: int) -> Tensor:
    """Each pair (i, i + A/2) turned by position * theta^(-2i/A), as a complex number."""
    half = len(x_A) // 2
    turned = [
        complex(x_A[i], x_A[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i in range(half)
        for angle in [position * THETA ** (-2 * i / len(x_A))]
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned])


def loop_over_pairs(attention: Attention, x_SD: Tensor, may_see: Tensor) -> Tensor:
    """Grouped-query attention of one sequence; `may_see` is bool [S, S]."""
    heads, kv_heads, width = attention.num_heads, attention.num_kv_heads, attention.head_dim
    sizes = (heads * width, kv_heads * width, kv_heads * width)
    q_SD, k_SD, v_SD = (x_SD @ attention.qkv.weight.T).detach().split(sizes, dim=-1)
    rows = []
    for query in range(len(x_SD)):
        mixed = []
        for head in range(heads):
            mine = slice(head * width, (head + 1) * width)
            group = head // (heads // kv_heads)
            theirs = slice(group * width, (group + 1) * width)
            keys = [key for key in range(len(x_SD)) if may_see[query, key]]
            turned_A = rotate_pairs(q_SD[query, mine], query)
            scores = torch.stack([turned_A @ rotate_pairs(k_SD[key, theirs], key) for key in keys])
            mixed.append((scores / math.sqrt(width)).softmax(0) @ v_SD[keys, theirs])
        rows.append(attention.out.weight @ torch.cat(mixed))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)], ids=["full", "grouped", "one kv head"]
)
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
def test_attention_equals_a_loop_over_heads_and_positions(num_heads: int, num_kv_heads: int, masked: bool) -> None:
    attention = make_attention(num_heads, num_kv_heads)
    x_BSD = torch.randn(2, LENGTH, DIM, generator=torch.Generator().manual_seed(1))
    document_BS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1]]) if masked else None
    allowed = allowed_pairs(2, 0, LENGTH, real_BC=None, document_BS=document_BS, device=x_BSD.device)
    y_BSD = attention(x_BSD, rotary_angles(torch.arange(LENGTH), attention.head_dim, THETA), allowed, None)
    causal = torch.ones(LENGTH, LENGTH).tril().bool()
    for row in range(2):
        may_see = causal if document_BS is None else causal & (document_BS[row, :, None] == document_BS[row])
        torch.testing.assert_close(y_BSD[row], loop_over_pairs(attention, x_BSD[row], may_see), rtol=1e-4, atol=1e-5)


def test_rotated_scores_depend_on_the_distance_of_positions_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    scores = []
    for shift in (0, 5, 90):
        turned = [rotate(x, rotary_angles(torch.tensor([at + shift]), 8, THETA)) for x, at in ((q, 9), (k, 2))]
        scores.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-4, atol=1e-5)


def test_rotation_keeps_the_dtype_and_the_length_of_a_vector() -> None:
    x = torch.randn(1, 2, LENGTH, 8, generator=torch.Generator().manual_seed(0))
    rotation = rotary_angles(torch.arange(LENGTH), 8, THETA)
    assert rotate(x.bfloat16(), rotation).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x, rotation).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(
    ("past", "padded", "packed"),
    [(3, False, False), (0, True, False), (3, True, False), (0, False, True), (0, True, True)],
    ids=["behind a cache", "padded", "padded behind a cache", "packed", "packed and padded"],
)
def test_allowed_pairs_equal_a_loop_over_queries_and_keys(past: int, padded: bool, packed: bool) -> None:
    length, context = 4, past + 4
    real_BC = torch.rand(2, context, generator=torch.Generator().manual_seed(2)) > 0.4 if padded else None
    document_BS = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2]]) if packed else None
    allowed = allowed_pairs(2, past, length, real_BC=real_BC, document_BS=document_BS, device=torch.device("cpu"))
    assert allowed is not None
    for row in range(2):
        for query in range(length):
            for key in range(context):
                at = past + query
                expected = key <= at and (real_BC is None or bool(real_BC[row, key]) or key == at)
                if document_BS is not None:
                    expected = expected and bool(document_BS[row, query] == document_BS[row, key])
                assert bool(allowed[row, 0, query, key]) == expected


@pytest.mark.parametrize(("past", "length"), [(0, 4), (0, 1), (3, 1)])
def test_plain_causal_attention_and_a_single_new_token_need_no_mask(past: int, length: int) -> None:
    assert allowed_pairs(1, past, length, real_BC=None, document_BS=None, device=torch.device("cpu")) is None


@pytest.mark.parametrize("capacity", [0, 3, 5, 9])
def test_a_cache_returns_what_was_stored_and_makes_room_for_more(capacity: int) -> None:
    cache = KeyValueCache(1, 2, 4, torch.zeros(()), capacity=capacity, window=None)
    keys, values = torch.randn(2, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    cache.append(keys[:, :, :3], values[:, :, :3])
    stored_keys, stored_values = cache.append(keys[:, :, 3:], values[:, :, 3:])
    assert torch.equal(stored_keys, keys)
    assert torch.equal(stored_values, values)
    again_keys, _ = cache.append(keys[:, :, :1], values[:, :, :1])
    assert torch.equal(again_keys, torch.cat((keys, keys[:, :, :1]), dim=2))
    assert cache.length == 6


@pytest.mark.parametrize("pieces", [[5], [1, 1, 1, 1, 1], [3, 2], [1, 4]])
def test_a_window_keeps_what_the_next_token_may_see(pieces: list[int]) -> None:
    cache = KeyValueCache(1, 2, 4, torch.zeros(()), capacity=9, window=3)
    keys, values = torch.randn(2, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    before = 0
    for key_part, value_part in zip(keys.split(pieces, dim=2), values.split(pieces, dim=2), strict=True):
        seen, _ = cache.append(key_part, value_part)
        end = before + key_part.shape[2]
        assert torch.equal(seen, keys[:, :, max(0, before - 2) : end])
        before = end
    assert torch.equal(cache.tensors()["keys_BGCA"], keys[:, :, 3:])
