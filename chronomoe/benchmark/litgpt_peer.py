"""litgpt's GPT with its LLaMAMoE as a system: our weights under its names, so that its logits are ours.

It has no load-balancing loss and does that much less. litgpt is imported with this file, which is imported only in the
process that needs it.
"""

from __future__ import annotations

from litgpt.config import Config
from litgpt.model import GPT
from torch import Tensor

from chronomoe.benchmark.learner import Learner, Losses, clipping, fused_adamw, mean_cross_entropy
from chronomoe.benchmark.systems import System
from chronomoe.config import TrainConfig
from chronomoe.model.settings import ModelSettings

ONCE = {
    "embedding.weight": "transformer.wte.weight",
    "norm.weight": "transformer.ln_f.weight",
    "head.weight": "lm_head.weight",
}
PER_BLOCK = {
    "attention_norm.weight": "norm_1.weight",
    "attention.qkv.weight": "attn.qkv.weight",
    "attention.out.weight": "attn.proj.weight",
    "ffn_norm.weight": "norm_2.weight",
    "ffn.router.gate.weight": "mlp.gate.weight",
}


def build(system: System, config: TrainConfig, batch_BS: Tensor, weights: dict[str, Tensor]) -> Learner:
    model = GPT(litgpt_config(config)).to(batch_BS.device)
    model.load_state_dict(to_litgpt(weights, config.model))

    def losses(ids_BS: Tensor, targets_BS: Tensor) -> Losses:
        loss = mean_cross_entropy(model(ids_BS), targets_BS)
        return Losses(loss, loss)

    return Learner(model, losses, model, fused_adamw(model, config), clipping(model), note="has no load-balancing loss")


def litgpt_config(config: TrainConfig) -> Config:
    model = config.model
    return Config(
        block_size=model.max_seq_len,
        n_layer=model.num_layers,
        n_embd=model.dim,
        vocab_size=model.vocab_size,
        padded_vocab_size=model.vocab_size,
        n_head=model.num_heads,
        n_query_groups=model.num_kv_heads,
        n_expert=model.num_experts,
        n_expert_per_token=config.router.top_k,
        mlp_class_name="LLaMAMoE",
        intermediate_size=model.hidden_dim,
        moe_intermediate_size=model.hidden_dim,
        norm_class_name="RMSNorm",
        norm_eps=model.norm_eps,
        rope_base=round(model.rope_theta),
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )


def to_litgpt(state: dict[str, Tensor], model: ModelSettings) -> dict[str, Tensor]:
    """Our weights under litgpt's names; its experts are modules of their own, gate and up apart."""
    renamed = {theirs: state[ours] for ours, theirs in ONCE.items()}
    for layer in range(model.num_layers):
        ours_prefix, theirs_prefix = f"blocks.{layer}.", f"transformer.h.{layer}."
        for ours, theirs in PER_BLOCK.items():
            renamed[theirs_prefix + theirs] = state[ours_prefix + ours]
        for expert in range(model.num_experts):
            prefix = f"{theirs_prefix}mlp.experts.{expert}."
            gate_FD, up_FD = state[f"{ours_prefix}ffn.experts.gate_up_EFD"][expert].chunk(2)
            renamed[prefix + "fc_1.weight"], renamed[prefix + "fc_2.weight"] = gate_FD, up_FD
            renamed[prefix + "proj.weight"] = state[f"{ours_prefix}ffn.experts.down_EDF"][expert]
    return renamed
