"""Products of activations with weights: in which precision, from which copy of the weight, by which library.

    y = x W^T ;  d_x = d_y W ;  d_W = d_y^T x
Under autocast products run in its dtype. A weight is then cast once per optimizer step instead of once per use, if
somebody asked for it (`keep_working_copy`): bf16 beside an fp32 master, as in arXiv 1710.03740.

Axes: M rows, K shared, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Product = Callable[[Tensor, Tensor], Tensor]
"""(a_MK, b_NK) -> a b^T [M, N]."""


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products of `x` run in: autocast's where it is on, else x's own."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Autocast off; where it is off already this costs nothing, which a decoding step notices."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


@dataclass
class WorkingCopy:
    """A weight in the dtype of its products, and the version of the weight it was cast from."""

    tensor: Tensor
    version: int = -1

    def is_of(self, weight: Tensor) -> bool:
        return self.version == weight._version and self.tensor.device == weight.device


def keep_working_copy(weight: nn.Parameter, dtype: torch.dtype, *, half_gradient: bool) -> None:
    """Let `working` cast this weight once per change. Not for parameters whose storage is filled behind autograd's
    back, as sharding does and torch's own fused optimizers do (training/adamw.py sees to it): the change would not be
    seen.

    half_gradient: leave the gradient in `dtype`, as its product gives it. Not where several are summed, over
    micro-batches or processes: that would round every partial sum.
    """
    weight.working_copy = WorkingCopy(torch.empty_like(weight, dtype=dtype, requires_grad=False))  # type: ignore[attr-defined]
    if half_gradient:
        weight.grad_dtype = dtype  # type: ignore[attr-defined]


def working_copy_of(weight: Tensor) -> WorkingCopy | None:
    return getattr(weight, "working_copy", None)


class StandIn(torch.autograd.Function):
    """The working copy in the forward pass, the weight in the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx: Any, d_weight: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return d_weight, None


def working(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`; its gradient reaches `weight`."""
    copy = working_copy_of(weight)
    if dtype == weight.dtype or copy is None or copy.tensor.dtype != dtype:
        return weight.to(dtype)
    if not copy.is_of(weight):
        copy.tensor = copy.tensor.to(weight.device)
        copy.tensor.copy_(weight.detach())
        copy.version = weight._version
    result: Tensor = StandIn.apply(weight, copy.tensor)
    return result


def by_torch(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    return a_MK @ b_NK.T


def by_onednn(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """oneDNN's own fp32 product, at full precision. torch hands fp32 products to MKL, which takes the slow way on
    processors that are not Intel's."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, "none", [], "")
    return product


FEW_ROWS = 8
"""Up to so many rows, a product on a processor is reading its weight: `by_columns` reads it faster than the libraries'
own way of multiplying rows."""


def few(x: Tensor, rows: int, most: int = FEW_ROWS) -> bool:
    """Whether a product of x, of so many rows, is one of a decoding step: on a processor, without a gradient."""
    return rows <= most and x.is_cpu and not torch.is_grad_enabled()


def by_columns(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """a b^T as (b a^T)^T, for few rows in fp32. One row is shared out as a batch of two halves of the weight: MKL would
    multiply it by a vector kernel that reads at a quarter of the memory's speed."""
    if len(a_MK) == 1 and len(b_NK) % 2 == 0:
        return torch.bmm(b_NK.view(2, -1, b_NK.shape[1]), a_MK.T.expand(2, -1, -1)).view(1, -1)
    return torch.mm(b_NK, a_MK.T).T.contiguous()


LIBRARIES: dict[str, Product] = {"torch": by_torch, "onednn": by_onednn}


def onednn_multiplies(device_type: str, dtype: torch.dtype) -> bool:
    """Whether `by_onednn` can take this: the operator is private to torch and made for inference."""
    return device_type == "cpu" and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def library_for(library: str, x: Tensor) -> Product:
    """The chosen library where it can multiply x, else torch."""
    return LIBRARIES[library] if library == "torch" or onednn_multiplies(x.device.type, x.dtype) else by_torch


def into(library: str, x: Tensor) -> Callable[[Tensor, Tensor, Tensor], object]:
    """(out, a, b) -> out = a b^T; torch writes it there, oneDNN's operator only returns it."""
    multiply = library_for(library, x)
    if multiply is by_torch:
        return lambda out, a, b: torch.mm(a, b.T, out=out)
    return lambda out, a, b: out.copy_(multiply(a, b))


class OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return by_onednn(x_MK, weight_NK)

    @staticmethod
    def backward(ctx: Any, d_y_MN: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x_MK, weight_NK = ctx.saved_tensors
        return by_onednn(d_y_MN, weight_NK.T), by_onednn(d_y_MN.T, x_MK.T)


class Linear(nn.Linear):
    """y = x W^T without a bias, in x's dtype."""

    library: str = "torch"
    """Who multiplies fp32 on a processor."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if few(x, x.numel() // self.in_features) and x.dtype == weight.dtype == torch.float32:
            return by_columns(x.reshape(-1, self.in_features), weight).view(*x.shape[:-1], -1)
        if library_for(self.library, x) is not by_onednn:
            return linear(x, working(weight, x.dtype))
        y: Tensor = OneDnnLinear.apply(x.flatten(0, -2), weight)
        return y.unflatten(0, x.shape[:-1])
