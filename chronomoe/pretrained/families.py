"""Which loaded models can be steered: for each class of transformers, where its routers are and what their rule is.

| family | gate | weights | besides |
|---|---|---|---|
| Mixtral | topk_softmax | over their sum | arXiv 2401.04088 |
| OLMoE, Qwen2-MoE, Qwen3-MoE | softmax | the probabilities | as Mixtral where `norm_topk_prob` |
| DeepSeek-V2 | softmax | the probabilities, scaled | groups; gate in fp32; dense first layers |
| DeepSeek-V3 | sigmoid | over their sum, scaled | groups by their best two; own correction bias |
| Switch | softmax | the probability | one expert; encoder and decoder; capacity also in evaluation |
Shared experts are never routed and not counted; a layer without a router is not among the L layers. A rule is read off
the router itself, and `SteeredModel` checks it against what the router does.

Axes: L MoE layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from chronomoe.pretrained.rules import Groups, Rule
from chronomoe.settings import InputError


class Family(NamedTuple):
    name: str
    model_class: str
    """Of transformers, with the language-model head."""
    router_class: str
    rule: Callable[[Any], Rule]
    """From a router of the model."""
    streams: bool = True
    """A decoder alone, whose text a state can be of."""


def softmax_rule(router: Any) -> Rule:
    renormalised = getattr(router, "norm_topk_prob", True)  # Mixtral always does
    return Rule(router.top_k, "topk_softmax" if renormalised else "softmax", renormalised)


def deepseek_v2_rule(router: Any) -> Rule:
    limited = router.topk_method == "group_limited_greedy"
    groups = Groups(router.num_group, router.topk_group, best=1) if limited else None
    return Rule(router.top_k, "softmax", False, router.routed_scaling_factor, groups, in_fp32=True)


def deepseek_v3_rule(router: Any) -> Rule:
    groups = Groups(router.num_group, router.topk_group, best=2)
    return Rule(router.top_k, "sigmoid", router.norm_topk_prob, router.routed_scaling_factor, groups, in_fp32=True)


def switch_rule(router: Any) -> Rule:
    return Rule(1, "softmax", False)


FAMILIES = (
    Family("Mixtral", "MixtralForCausalLM", "MixtralTopKRouter", softmax_rule),
    Family("OLMoE", "OlmoeForCausalLM", "OlmoeTopKRouter", softmax_rule),
    Family("Qwen2-MoE", "Qwen2MoeForCausalLM", "Qwen2MoeTopKRouter", softmax_rule),
    Family("Qwen3-MoE", "Qwen3MoeForCausalLM", "Qwen3MoeTopKRouter", softmax_rule),
    Family("DeepSeek-V2", "DeepseekV2ForCausalLM", "DeepseekV2TopkRouter", deepseek_v2_rule),
    Family("DeepSeek-V3", "DeepseekV3ForCausalLM", "DeepseekV3TopkRouter", deepseek_v3_rule),
    Family(
        "Switch",
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersTop1Router",
        switch_rule,
        streams=False,
    ),
)


def find_family(model_class: str, source: str = "model") -> Family:
    """Raises InputError for a class that is not in the table; `source` is how the user named the model."""
    for family in FAMILIES:
        if family.model_class == model_class:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise InputError(f"{source}: {model_class} cannot be steered; take a model with routers of {names}")


def find_routers(base: Any, family: Family) -> list[tuple[Any, Any]]:
    """Routers and the experts beside them, in the order of their layers. Raises InputError where there are none, or
    where their weights are no plain matrices."""
    found = []
    for name, module in base.named_modules():
        if type(module).__name__ != family.router_class:
            continue
        weight = module.weight if hasattr(module, "weight") else module.classifier.weight
        if not weight.is_floating_point() or weight.shape[0] != module.num_experts:
            raise InputError(
                f"{name}: this router's weights are quantised; load the model with routers left as they are"
            )
        block = base.get_submodule(name.rpartition(".")[0])
        found.append((module, block.experts))
    if not found:
        raise InputError(f"{type(base).__name__}: there is no {family.router_class} in it, so nothing can be steered")
    return found
