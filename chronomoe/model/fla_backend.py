"""The recurrence of wkv.py by the Triton kernels of flash-linear-attention, if fla-core is installed.

Never needed, and used on CUDA devices only, for bf16 and fp16 activations (the kernels round their operands), after one
comparison with our own form on each device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import normalize

from chronomoe.model.chunked_wkv import wkv_chunked
from chronomoe.model.wkv import LOWEST_LOG_DECAY, Inputs

WKV = Callable[..., tuple[Tensor, Tensor]]

TOLERANCE = 5e-3
"""Of the norm of a difference, relative to the norm: fla's own tests accept 2e-3 of outputs and states, and rounding
gradients to bf16 costs as much again."""


def fla_takes(x: Tensor) -> bool:
    """Whether fla runs sequences like this one."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and agrees(x.device, x.dtype, x.shape[-1])


def wkv_by_fla(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state_BHNN: Tensor
) -> tuple[Tensor, Tensor]:
    """What `wkv_chunked` returns, to the precision of r's dtype."""
    kernels = import_module("fla.ops.rwkv7")  # an import statement would make fla a condition of exported models
    dtype = r.dtype
    o_BSHN, new_state_BHNN = kernels.chunk_rwkv7(
        r=r,
        w=log_w.to(dtype),
        k=k.to(dtype),
        v=v.to(dtype),
        a=a.to(dtype),
        b=b.to(dtype),
        scale=1.0,
        initial_state=state_BHNN.float(),
        output_final_state=True,
        safe_gate=True,
        lower_bound=LOWEST_LOG_DECAY,
    )
    return o_BSHN.float(), new_state_BHNN


@cache
def agrees(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """fla is there and gives our outputs, state and gradients, on a problem of two chunks and a half."""
    if find_spec("fla") is None:
        return False
    try:
        with torch.enable_grad():
            ours, theirs = (outputs_and_gradients(run, device, dtype, width) for run in (wkv_chunked, wkv_by_fla))
        worst = max(float((x - y).norm() / y.norm()) for x, y in zip(theirs, ours, strict=True))
    except Exception as error:
        warnings.warn(f"fla is installed but does not run ({error}): RWKV runs without it", stacklevel=2)
        return False
    if not worst <= TOLERANCE:
        warnings.warn(f"fla differs from the PyTorch form by {worst:.1e}: RWKV runs without it", stacklevel=2)
        return False
    return True


def outputs_and_gradients(run: WKV, device: torch.device, dtype: torch.dtype, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (2, 160, 2, width)
    key = normalize(draw(*shape), dim=-1)
    rate, log_w = draw(*shape).sigmoid(), LOWEST_LOG_DECAY * draw(*shape).sigmoid()
    inputs = Inputs(draw(*shape), log_w, draw(*shape), draw(*shape), -key, rate * key)
    given = [x.to(device, dtype).requires_grad_() for x in inputs]
    given.append(draw(2, 2, width, width).to(device).requires_grad_())
    outputs = run(*given)
    directions = [draw(*x.shape).to(device) for x in outputs]
    gradients = torch.autograd.grad(outputs, given, directions)
    return [x.detach().float() for x in (*outputs, *gradients)]
