"""RMSNorm (arXiv 1910.07467) and LayerNorm (1607.06450); the output is already in the dtype the next product runs in.

    r = 1/sqrt(mean_d x_d^2 + eps) ;  y = w x r
    d_x = r (w d_y - x r^2 mean_d(w d_y x)) ;  d_w = sum_t d_y x r
torch has one fused kernel of it on GPUs and none on processors, where its backward pass is a chain of small ones.

Axes: T tokens (all axes but the last), D model dim.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from chronomoe.model.products import few, full_precision, product_dtype
from chronomoe.model.settings import ModelSettings


class Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        with full_precision(x_TD.device.type):
            norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
            scale_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
            ctx.save_for_backward(x_TD, weight_D, scale_T1)
            return (x_TD * scale_T1).mul_(weight_D).to(dtype)

    @staticmethod
    def backward(ctx: Any, d_y_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        normal_TD, d_y_TD = x_TD * scale_T1, d_y_TD.to(x_TD.dtype)
        product_TD = d_y_TD * normal_TD
        d_weight_D = product_TD.sum(dim=0)
        mean_T1 = torch.mv(product_TD, weight_D).div_(len(weight_D))[:, None]
        return (d_y_TD * weight_D).sub_(normal_TD.mul_(mean_T1)).mul_(scale_T1), d_weight_D, None, None


@cache
def scalar(value: float, dtype: torch.dtype) -> Tensor:
    return torch.full((), value, dtype=dtype, device="cpu")


def normalise_few(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The same in the fewest operations, each of which costs more than its arithmetic when rows are few:
    sqrt(mean_d x_d^2 + eps) is the hypotenuse of |x|/sqrt(D) and sqrt(eps)."""
    root_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).mul_(len(weight_D) ** -0.5)
    return (x_TD / root_T1.hypot_(scalar(eps**0.5, x_TD.dtype))).mul_(weight_D)


def build_norm(model: ModelSettings) -> nn.Module:
    return LayerNorm(model.dim, model.norm_eps) if model.norm == "layer" else RMSNorm(model.dim, model.norm_eps)


class LayerNorm(nn.LayerNorm):
    """Over the last axis, with weight and bias, in x's own precision; the output is in `product_dtype`."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = product_dtype(x)
        with full_precision(x.device.type):
            return super().forward(x).to(dtype)


class RMSNorm(nn.RMSNorm):
    """Over the last axis, in x's own precision; the output is in `product_dtype`."""

    def forward(self, x: Tensor) -> Tensor:
        dtype, weight_D = product_dtype(x), self.weight
        if self.eps is not None and x.dtype == weight_D.dtype == dtype and few(x, x.numel() // len(weight_D)):
            return normalise_few(x, weight_D, self.eps)
        if x.device.type != "cpu" or x.dtype != weight_D.dtype:
            return super().forward(x).to(dtype)
        y: Tensor = Normalise.apply(x.flatten(0, -2), weight_D, self.eps, dtype)
        return y.view(x.shape)
