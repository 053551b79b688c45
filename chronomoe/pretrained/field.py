"""The controller's last field beside a model that has no place for it, and what that model does without it.

transformers' Mixtral has neither bias nor temperature in its router. So the field travels in a file of its own, which
nobody but chronomoe reads, and the effect of leaving it out is measured: on tokens that the model itself writes,

    rerouted = assignments to experts that the field would not have chosen / all assignments
    KL = mean over tokens of sum_v p(v) (log p(v) - log q(v)),  p with the field, q without, in nats per token

Axes: L MoE layers, E experts, T tokens, K experts per token, B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from chronomoe.model.generation import generate
from chronomoe.model.lm import LanguageModel, Output
from chronomoe.model.settings import ModelSettings
from chronomoe.pretrained.shards import read_object
from chronomoe.settings import InputError
from chronomoe.whole_file import write_json

FIELD_FILE = "chronomoe_field.json"
BUFFERS = ("expert_bias_LE", "log_temperature_LE")
WRITTEN = (4, 64)
"""Texts and tokens of each that the effect is measured on."""


class Effect(NamedTuple):
    rerouted: float
    """Share of assignments, over all layers."""
    mean_logit_difference: float
    """Mean absolute difference of the head's logits."""
    kl_nats: float
    """Per token."""
    tokens: int


def is_neutral(model: LanguageModel) -> bool:
    """Adding the same to every expert of a layer moves nothing under the gate of a Mixtral."""
    bias_LE = model.expert_bias_LE - model.expert_bias_LE[:, :1]
    return not bool(bias_LE.any() or model.log_temperature_LE.any())


@torch.inference_mode()
def measure_effect(model: LanguageModel, first_id: int, seed: int = 0) -> Effect:
    """Of leaving the field out; the model is as it was afterwards. Texts begin behind the token `first_id`."""
    batch, length = WRITTEN[0], min(WRITTEN[1], model.settings.max_seq_len - 1)
    start_B1 = torch.full((batch, 1), first_id)
    drawn = generate(model, start_B1, max_new_tokens=length, generator=torch.Generator().manual_seed(seed))
    shown = tqdm(drawn, "effect of the field", length, unit="token", delay=2, disable=None, leave=False)
    ids_BS = torch.cat((start_B1, torch.stack(list(shown), dim=1)), dim=1)
    steered = model(ids_BS)
    field = {name: getattr(model, name).clone() for name in BUFFERS}
    try:
        for name in BUFFERS:
            getattr(model, name).zero_()
        plain = model(ids_BS)
    finally:
        for name, values_LE in field.items():
            getattr(model, name).copy_(values_LE)
    with_BSV, without_BSV = steered.logits_BSV.float(), plain.logits_BSV.float()
    log_p_BSV, log_q_BSV = with_BSV.log_softmax(-1), without_BSV.log_softmax(-1)
    return Effect(
        rerouted=share_rerouted(steered, plain),
        mean_logit_difference=float((with_BSV - without_BSV).abs().mean()),
        kl_nats=float((log_p_BSV.exp() * (log_p_BSV - log_q_BSV)).sum(-1).mean()),
        tokens=ids_BS.numel(),
    )


def share_rerouted(steered: Output, plain: Output) -> float:
    """Share of the second's assignments that the first does not have."""
    kept = [
        (after.topk_expert_ids_TK[:, :, None] == before.topk_expert_ids_TK[:, None, :]).any(-1)
        for before, after in zip(steered.routings, plain.routings, strict=True)
    ]
    return 1.0 - float(torch.stack(kept).float().mean())


def write_field(folder: Path, model: LanguageModel, actuation: str, law: str, effect: Effect | None) -> None:
    """fp32 written out in full: read back, the field is the same bit for bit."""
    content: dict[str, Any] = {"actuation": actuation, "law": law}
    content |= {name: getattr(model, name).tolist() for name in BUFFERS}
    content["effect_of_leaving_it_out"] = effect._asdict() if effect else None
    write_json(folder / FIELD_FILE, content)


def read_field(folder: Path, settings: ModelSettings) -> tuple[dict[str, Tensor], str]:
    """The buffers and the actuation, which whoever builds a config checks; a neutral field where the folder has none.
    Raises InputError for a broken one."""
    shape = (settings.num_moe_layers, settings.num_experts)
    if not (folder / FIELD_FILE).exists():
        return {name: torch.zeros(shape) for name in BUFFERS}, "selection"
    saved = read_object(folder / FIELD_FILE)
    try:
        field = {name: torch.tensor(saved[name], dtype=torch.float32) for name in BUFFERS}
    except (KeyError, ValueError, TypeError):
        field = {}
    if not field or any(t.shape != shape or not t.isfinite().all() for t in field.values()):
        raise InputError(
            f"source={folder}: {FIELD_FILE} is no field of {shape[0]} x {shape[1]} experts: fetch it again"
        )
    return field, str(saved.get("actuation"))


def describe(effect: Effect | None) -> str:
    """One line on what transformers' Mixtral does without the field."""
    if effect is None:
        return "the field is neutral: logits are the run's own"
    return (
        f"plain Mixtral has no place for the controller's field, which is kept in {FIELD_FILE}: without it "
        f"{effect.rerouted:.1%} of assignments go elsewhere, logits differ by {effect.mean_logit_difference:.2g} on "
        f"average and the next token's distribution by {effect.kl_nats:.2g} nats ({effect.tokens} tokens the model "
        "wrote); form=package keeps it acting"
    )
