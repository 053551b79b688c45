"""torch's fused AdamW (arXiv 1711.05101), with the clipping in the same pass and gradients of half precision.

    g <- g min(1, limit/|g|) ;  m, v, w <- AdamW(g) ;  working copy <- w
The update is bound by memory: 28 bytes a parameter. Clipping apart reads and writes every gradient once more, casting
a half-precision gradient and refreshing a working copy touch each again; here all three happen to a slice of the
weights while it is in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chronomoe.model.products import working_copy_of

SLICE = 2**19
"""Parameters updated at a time: with both moments and the gradient 8 MiB."""
NORM_SLICE = 2**16
"""Norms are taken of so many numbers: torch rounds each to the gradient's dtype, which evens out over many."""


class AdamW(torch.optim.AdamW):
    """`clip` before `step` scales the step's gradients inside it."""

    def __init__(self, params: Any, **settings: Any) -> None:
        """Raises ValueError for what the update in slices has no place for."""
        for name in ("amsgrad", "maximize"):
            if settings.get(name):
                raise ValueError(f"{name}=True is not part of this AdamW: use torch.optim.AdamW")
        super().__init__(params, **settings)
        self._scale: Tensor | None = None
        self._scratch = torch.empty(0)

    def gradients(self) -> list[Tensor]:
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def clip(self, limit: float) -> Tensor:
        """Let the next step see gradients of at most this global norm; returns their norm, fp32 on the device."""
        norm = global_norm(self.gradients())
        self._scale = (limit / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, self._scale = self._scale, None
        on_processor = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        if not on_processor or not self.defaults["fused"]:
            if scale is not None:
                torch._foreach_mul_(self.gradients(), scale)
            super().step()
            every = (p for group in self.param_groups for p in group["params"])
            # A fused step raises no version, by which a working copy knows that its weight changed.
            torch.autograd.graph.increment_version([p for p in every if working_copy_of(p) is not None])
            return loss
        for group in self.param_groups:
            weights, gradients, first, second, steps = ([] for _ in range(5))  # type: ignore[var-annotated]
            self._init_group(group, weights, gradients, first, second, [], steps)
            if steps:
                torch._foreach_add_(steps, 1)
            for weight, g, m, v, count in zip(weights, gradients, first, second, steps, strict=True):
                self._update_in_slices(group, weight, g, m, v, count, scale)
        return loss

    def _update_in_slices(
        self,
        group: dict[str, Any],
        weight: nn.Parameter,
        gradient: Tensor,
        first: Tensor,
        second: Tensor,
        step: Tensor,
        scale: Tensor | None,
    ) -> None:
        copy = working_copy_of(weight)
        updated = (weight.detach(), first, second, weight.detach() if copy is None else copy.tensor)
        in_place = [tensor.view(-1).split(SLICE) for tensor in updated]  # `reshape` might update a copy
        for w, m, v, c, g in zip(*in_place, gradient.reshape(-1).split(SLICE), strict=True):
            if scale is not None or g.dtype != w.dtype:
                if len(self._scratch) < len(g):
                    self._scratch = torch.empty(len(g))
                g = torch.mul(g, 1.0 if scale is None else scale, out=self._scratch[: len(g)])
            torch._fused_adamw_(  # where torch.optim.AdamW(fused=True) ends
                [w],
                [g],
                [m],
                [v],
                [],
                [step],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )
            if copy is not None:
                c.copy_(w)
        if copy is not None:
            copy.version = weight._version


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Square root of the sum of squares of all, fp32."""
    if not gradients:
        return torch.zeros(())
    if gradients[0].device.type == "cpu":
        gradients = [part for gradient in gradients for part in gradient.reshape(-1).split(NORM_SLICE)]
    return torch.linalg.vector_norm(torch.stack([norm.float() for norm in torch._foreach_norm(gradients)]))
