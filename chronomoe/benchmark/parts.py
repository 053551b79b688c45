"""The parts of a training step, and the ranges a profile knows them by.

A range costs some microseconds when nobody profiles. Parts nest; time belongs to the innermost. The ranges of the
forward pass are put around the methods of the model's modules from outside: the model's code knows nothing of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.profiler import record_function

from chronomoe.model.attention import Attention
from chronomoe.model.lm import LanguageModel
from chronomoe.model.moe import MoELayer

PARTS = ("router", "dispatch", "experts", "attention", "head and loss", "optimizer", "control", "rest")
"""`router`: with its losses. `dispatch`: what an MoE layer does beside router and experts. `optimizer`: with clipping.
`rest`: embedding, norms, residuals, the sensor, and whatever else has no name."""
PREFIX = "part: "


def part(name: str) -> AbstractContextManager[Any]:
    return record_function(PREFIX + name)


def mark(model: nn.Module) -> None:
    """Put ranges around the parts of our language model, for as long as it lives."""
    for module in model.modules():
        if isinstance(module, MoELayer):
            mark_methods(module, "dispatch")
            mark_methods(module.router, "router")
            mark_methods(module.experts, "experts")
            if module.shared_experts is not None:
                mark_methods(module.shared_experts, "experts")
        elif isinstance(module, Attention):
            mark_methods(module, "attention")
    if isinstance(model, LanguageModel):
        mark_head(model)


def mark_methods(module: nn.Module, name: str) -> None:
    """A range around every public method of the module's own class, because not everything goes through `forward`."""
    for method, function in vars(type(module)).items():
        if inspect.isfunction(function) and not method.startswith("_"):
            setattr(module, method, inside_part(name, getattr(module, method)))


def inside_part(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with part(name):
            return function(*arguments, **options)

    return call


def mark_head(model: LanguageModel) -> None:
    """What follows the final norm in the model's forward is the head, whether or not it is called as a module."""
    open_ranges: list[AbstractContextManager[Any]] = []

    def begin(*_: Any) -> None:
        open_ranges.append(part("head and loss"))
        open_ranges[-1].__enter__()

    def end(*_: Any) -> None:
        while open_ranges:
            open_ranges.pop().__exit__(None, None, None)

    model.norm.register_forward_hook(begin)
    model.register_forward_hook(end, always_call=True)
