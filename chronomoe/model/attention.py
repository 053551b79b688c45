"""Grouped-query attention with rotary positions and a key-value cache.

    q, k, v = x W_qkv ;  q, k rotated by position (arXiv 2104.09864) ;  y = softmax(q k^T / sqrt(head_dim) + mask) v W_o
Query heads share key-value heads in groups (arXiv 2305.13245). Two kernels: torch's scaled_dot_product_attention, which
picks flash or memory-efficient attention by itself where they exist; and on a processor, for whole short sequences
under the plain causal mask, the products of causal_attention.py.

Axes: B batch, S sequence, C cached context, H query heads, G key-value heads, A head width, D model dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from chronomoe.model.causal_attention import LONGEST, CausalAttention
from chronomoe.model.elementwise import as_chosen
from chronomoe.model.products import Linear
from chronomoe.model.state import KeyValueCache


class Rotation(NamedTuple):
    """Cosine and sine of every position's rotary angles [S, A], fp32 or wider; the two halves of A repeat, but for the
    sine's sign: minus in the first half, plus in the second, as they are turned."""

    cos_SA: Tensor
    sin_SA: Tensor


def rotary_angles(positions_S: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32) -> Rotation:
    """Angles position * theta^(-2i/head_dim). Computed in fp32, or fp64 in a model of that, for every forward, so no
    cast of the model loses them."""
    exponent = torch.arange(0, head_dim, 2, dtype=dtype, device=positions_S.device) / head_dim
    angle_Sa = torch.outer(positions_S.to(dtype), theta**-exponent)
    sin_Sa = angle_Sa.sin()
    return Rotation(angle_Sa.cos().repeat(1, 2), torch.cat((-sin_Sa, sin_Sa), dim=-1))


def rotate(x_BHSA: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the pairs (i, i + A/2) of each head by its position's angle."""
    other_BHSA = x_BHSA.roll(x_BHSA.shape[-1] // 2, dims=-1)  # of each pair, the other one
    return torch.addcmul(x_BHSA * rotation.cos_SA, other_BHSA, rotation.sin_SA).to(x_BHSA.dtype)


class Attention(nn.Module):
    kernel: str = "auto"
    """`products` or `sdpa`; `auto`: products on a processor, where they apply."""
    elementwise: str = "eager"
    """Whether the rotation in front of sdpa is `compiled`."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.qkv = Linear(dim, (num_heads + 2 * num_kv_heads) * self.head_dim)
        self.out = Linear(num_heads * self.head_dim, dim)

    def forward(
        self, x_BSD: Tensor, rotation: Rotation | None, allowed_B1SC: Tensor | None, cache: KeyValueCache | None
    ) -> Tensor:
        """`allowed_B1SC` is True where a query may look; None means plain causal attention over the sequence itself."""
        batch, length, _ = x_BSD.shape
        qkv_BSNA = self.qkv(x_BSD).view(batch, length, -1, self.head_dim)
        whole = allowed_B1SC is None and cache is None and self.multiplies(x_BSD.device.type, length)
        if whole and rotation is not None:
            y_BSHA = CausalAttention.apply(qkv_BSNA, *rotation, self.num_kv_heads)
            return self.out(y_BSHA.flatten(2))
        turning = self.num_heads + self.num_kv_heads
        qk, v = qkv_BSNA.transpose(1, 2).split((turning, self.num_kv_heads), dim=1)
        if rotation is not None:
            qk = as_chosen(rotate, self.elementwise)(qk, rotation)
        q, k = qk.split((self.num_heads, self.num_kv_heads), dim=1)
        if cache is not None:
            k, v = cache.append(k, v)
        causal = allowed_B1SC is None and length > 1
        shared = self.num_kv_heads != self.num_heads
        y_BHSA = scaled_dot_product_attention(q, k, v, attn_mask=allowed_B1SC, is_causal=causal, enable_gqa=shared)
        return self.out(y_BHSA.transpose(1, 2).reshape(batch, length, -1))

    def multiplies(self, device_type: str, length: int) -> bool:
        """Whether a whole sequence of this length under the plain causal mask is attended to by products."""
        wanted = self.kernel == "products" or (self.kernel == "auto" and device_type == "cpu")
        return wanted and length <= LONGEST


def allowed_pairs(
    batch: int,
    past: int,
    length: int,
    *,
    real_BC: Tensor | None,
    document_BS: Tensor | None,
    window: int | None = None,
    device: torch.device,
) -> Tensor | None:
    """Which of the `past + length` keys each of the last `length` positions may see, as bool [B, 1, S, C] or None.

    None stands for "causal and nothing else" (no cache in front, no padding, no document borders), which the kernel
    knows without a mask. `real_BC` is False at padding; `document_BS` numbers the documents of a packed sequence. With
    a `window` a query sees so many keys, its own included.
    A query always sees itself, so that a row of padding stays finite.
    """
    context = past + length
    narrow = window is not None and context > window
    if real_BC is None and document_BS is None and (past == 0 or length == 1) and not narrow:
        return None
    query_S1 = torch.arange(past, context, device=device)[:, None]
    key_C = torch.arange(context, device=device)
    allowed = (key_C <= query_S1).expand(batch, 1, length, context)
    if narrow and window is not None:
        allowed = allowed & (key_C > query_S1 - window)
    if real_BC is not None:
        allowed = allowed & (real_BC[:, None, None, :].bool() | (key_C == query_S1))
    if document_BS is not None:
        allowed = allowed & (document_BS[:, None, :, None] == document_BS[:, None, None, :])
    return allowed
