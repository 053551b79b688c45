"""transformers' Mixtral as a system: `transformers eager` and `transformers grouped_mm`, after its expert backends, and
`transformers grouped_mm kept` with the process-wide memory setting that our training makes and its users do not have;
`transformers grouped_mm compiled` by torch.compile, which the GPU benchmark adds.

Its load-balancing loss is `load_balancing_loss_func`, which sums over layers before it multiplies where ours takes each
layer by itself: another number, the same work. transformers is imported with this file, which is imported only in the
process that needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import MixtralForCausalLM

from chronomoe.benchmark.learner import Learner, Losses, clipping, fused_adamw, mean_cross_entropy
from chronomoe.benchmark.systems import System
from chronomoe.config import TrainConfig
from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral
from chronomoe.training.allocator import keep_freed_memory


def build(system: System, config: TrainConfig, batch_BS: Tensor, weights: dict[str, Tensor]) -> Learner:
    hf_config = mixtral_config(config.model, config.router)
    _, backend, *options = system.name.split()
    hf_config._experts_implementation = backend
    if "kept" in options:
        keep_freed_memory()
    with batch_BS.device:
        model = MixtralForCausalLM(hf_config)
    model.load_state_dict(to_mixtral(weights, config.model))
    weight = config.router.load_balancing_weight
    run = torch.compile(model) if "compiled" in options else model  # bf16 alone: fp32 grouped products do not compile

    def losses(ids_BS: Tensor, targets_BS: Tensor) -> Losses:
        output = run(ids_BS, use_cache=False, output_router_logits=weight > 0)
        loss = mean_cross_entropy(output.logits, targets_BS)
        return Losses(loss, loss + weight * output.aux_loss if weight > 0 else loss)

    def logits(ids_BS: Tensor) -> Tensor:
        found: Tensor = model(ids_BS, use_cache=False).logits
        return found

    return Learner(model, losses, logits, fused_adamw(model, config), clipping(model))
