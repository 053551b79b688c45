"""How many products a step needs, and what the machine can do."""

from __future__ import annotations

import pytest
import torch

from chronomoe.benchmark.limits import Limits, Shape, flop_per_token, shapes_of, ways
from chronomoe.config import compose_config


@pytest.mark.parametrize("dense", [False, True])
def test_flop_per_token_counts_every_matrix_product_once(dense: bool) -> None:
    config = compose_config(["model=mixtral_2x8", "chrono=off", f"model.dense={str(dense).lower()}"])
    m, seq_len = config.model, 128
    head_dim = m.dim // m.num_heads
    attention = m.dim * (m.num_heads + 2 * m.num_kv_heads) * head_dim + m.num_heads * head_dim * m.dim
    router = 0 if dense else m.dim * m.num_experts
    layer = attention + router + config.router.top_k * 3 * m.dim * m.hidden_dim
    scores = 2 * m.num_layers * seq_len * m.dim  # q k^T and p v, over half of the positions on average
    expected = 3 * (2 * (m.num_layers * layer + m.dim * m.vocab_size) + scores)
    norms = 3 * 2 * m.dim * (2 * m.num_layers + 1)  # the formula counts their weights as products; they are nothing
    assert flop_per_token(config, seq_len) - norms == expected


def test_shapes_are_a_square_and_those_of_an_expert_and_of_the_head() -> None:
    config = compose_config(["model=mixtral_4x16"])
    square, up, down, head = shapes_of(config, 2048)
    assert square == Shape(2048, 2048, 2048)
    assert up == (2048 * 2 // 16, 256, 2 * 896)
    assert down == (2048 * 2 // 16, 896, 256)
    assert head == (2048, 256, config.model.vocab_size)


def test_every_way_to_multiply_multiplies() -> None:
    a, b = torch.randn(5, 7), torch.randn(3, 7)
    found = {name: multiply() for name, multiply in ways(a, b)}
    assert "mm" in found
    for product in found.values():
        torch.testing.assert_close(product, a @ b.T)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rates_are_positive_and_named_by_shape_and_way(dtype: str) -> None:
    rates = Limits(1, "cpu").tflops(dtype, [Shape(8, 16, 32)])
    assert {"8 x 16 x 32, mm", "8 x 16 x 32, mm, transposed"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
