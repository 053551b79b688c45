"""What a pretrained model weighs: foretold from its configuration, and measured once it is loaded.

    bytes = reached · bits/8 + rest · bytes of the dtype ;   share quantised = reached / all parameters
bitsandbytes reaches the weights of `nn.Linear` modules, the head and the routers excepted. transformers (v5) keeps the
experts of all families but Switch in fused 3-D parameters, which it does not reach: of Mixtral-8x7B's 46,702,792,704
parameters it quantises the attention's 1,342,177,280, and "4 bit" weighs 91.5 GB where bf16 weighs 93.4.
Four bits cost 4.5 with the fp32 scale of each block of 64 weights.

Axes: none; parameters are counted, not shaped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chronomoe.pretrained.families import Family
from chronomoe.settings import InputError

BITS = {"int8": 8.0, "nf4": 4.5}
ENOUGH_QUANTISED = 0.9
LEFT_ALONE = ("lm_head", "classifier")
"""Names of the modules that stay in full precision: heads and Switch's routers."""


class Footprint(NamedTuple):
    parameters: int
    """As the model has them, packed or not."""
    num_bytes: int
    quantised: int
    """Parameters that are stored in less than two bytes each."""

    @property
    def share(self) -> float:
        return self.quantised / self.parameters

    def __str__(self) -> str:
        weight = f"{self.parameters:,} parameters in {self.num_bytes / 1e9:,.2f} GB"
        return f"{weight}, {self.share:.1%} of them quantised" if self.quantised else weight


def on_meta(family: Family, config: Any, dtype: torch.dtype) -> nn.Module:
    """The model without any of its memory."""
    import transformers

    with torch.device("meta"):
        model: nn.Module = getattr(transformers, family.model_class)(config)
    return model.to(dtype)


def foretell(model: nn.Module, quantisation: str = "none") -> Footprint:
    """What a model on the meta device would weigh; a matrix that two modules share counts once."""
    reached = set() if quantisation == "none" else {id(weight) for weight in reachable(model)}
    parameters = num_bytes = quantised = 0
    for parameter in model.parameters():
        parameters += parameter.numel()
        if id(parameter) in reached:
            quantised += parameter.numel()
            num_bytes += int(parameter.numel() * BITS[quantisation] / 8)
        else:
            num_bytes += parameter.numel() * parameter.element_size()
    return Footprint(parameters, num_bytes, quantised)


def reachable(model: nn.Module) -> list[Tensor]:
    """Weights that bitsandbytes quantises."""
    return [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] not in LEFT_ALONE
    ]


def measure(model: nn.Module) -> Footprint:
    """Of a loaded model, whatever quantised it; buffers and scales are not counted."""
    parameters = num_bytes = quantised = 0
    for parameter in model.parameters():
        packed = getattr(parameter, "quant_state", None)  # bitsandbytes puts two weights in a byte
        count = parameter.numel() if packed is None else packed.shape.numel()
        parameters += count
        num_bytes += parameter.numel() * parameter.element_size()
        quantised += count if parameter.element_size() < 2 else 0
    return Footprint(parameters, num_bytes, quantised)


def check_quantised(found: Footprint, source: str, quantisation: str) -> None:
    """Raises InputError where what was asked to be quantised is for the most part not."""
    if found.share < ENOUGH_QUANTISED:
        raise InputError(
            f"quantisation={quantisation}: only {found.share:.1%} of {source}'s {found.parameters:,} parameters can be "
            f"quantised (experts are fused and stay as they are), so it takes {found.num_bytes / 1e9:,.3g} GB: use "
            "quantisation=none, or a checkpoint whose experts are quantised"
        )
