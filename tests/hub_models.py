"""Tiny models of every family that can be steered, built from transformers' own classes with seeded random weights."""

from __future__ import annotations

from typing import Any

import torch

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
}
SHARED = {"num_experts": 6, "shared_expert_intermediate_size": 20}
RENORMALISED = {"num_experts": 6, "norm_topk_prob": True}
SWITCH = {
    "vocab_size": 32,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "num_experts": 4,
    "expert_capacity": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", SIZES | {"num_local_experts": 4}),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM", SIZES | {"num_experts": 6}),
    "olmoe_renormalised": ("OlmoeConfig", "OlmoeForCausalLM", SIZES | RENORMALISED),
    "qwen2": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM", SIZES | SHARED | {"mlp_only_layers": [0]}),
    "qwen3": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", SIZES | RENORMALISED | {"head_dim": 4}),
    "deepseek_v2": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        SIZES | LATENT | {"topk_method": "group_limited_greedy", "num_experts": 8},
    ),
    "deepseek_v2_greedy": (
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        SIZES | LATENT | {"topk_method": "greedy", "num_experts": 8},
    ),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", SIZES | LATENT | {"num_local_experts": 8}),
    "switch": ("SwitchTransformersConfig", "SwitchTransformersForConditionalGeneration", SWITCH),
}
FAMILIES = list(CONFIGS)
DECODERS = [name for name in FAMILIES if name != "switch"]


def tiny_hub_model(name: str, *, seed: int = 0, **overrides: Any) -> Any:
    """In eval mode, with routers that tell tokens apart and, for DeepSeek-V3, a correction bias that acts."""
    import transformers

    config_class, model_class, settings = CONFIGS[name]
    config = getattr(transformers, config_class)(**(settings | overrides))
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for module in model.modules():
            if "Router" in type(module).__name__:
                weight = module.weight if hasattr(module, "weight") else module.classifier.weight
                weight.normal_(0.0, 0.5)
                if hasattr(module, "e_score_correction_bias"):
                    module.e_score_correction_bias.normal_(0.0, 0.2)
    return model.eval()
