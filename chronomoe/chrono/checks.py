"""Control settings that contradict each other, the model or the data. Each message names the key and what fits."""

from __future__ import annotations

from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.bip import BipSettings
from chronomoe.chrono.laws.law import ChronoSettings, ControlSettings
from chronomoe.chrono.laws.quantile import QuantileSettings
from chronomoe.chrono.laws.sinkhorn import SinkhornSettings
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError

ENOUGH_FOR_A_QUANTILE = 10
"""Assignments per expert and micro-batch below which a price would be a quantile of next to nothing."""


def check_chrono(
    chrono: ChronoSettings, model: ModelSettings, router: RouterSettings, micro_batch_tokens: int, max_steps: int
) -> None:
    if model.dense and chrono.law != "off":
        raise InputError(f"chrono.law={chrono.law} has no router to steer in a dense model: add chrono=off")
    law = LAWS.get(chrono.law)
    if law is None or type(chrono) is not law.settings:
        raise InputError(f"chrono.law={chrono.law} is set by the law's file: choose a law with chrono={'|'.join(LAWS)}")
    start_step = getattr(chrono, "start_step", 0)
    if start_step >= max_steps:
        raise InputError(f"chrono.start_step={start_step} is past the run's end: lower it below trainer.max_steps")
    if isinstance(chrono, (QuantileSettings, BipSettings, SinkhornSettings)):
        check_pricing(chrono, model, router, micro_batch_tokens)
    if isinstance(chrono, ControlSettings):
        check_control(chrono, model, router.top_k)


def check_decoding(chrono: ChronoSettings) -> None:
    """Before a text is continued token by token."""
    if isinstance(chrono, BipSettings) and chrono.evaluation == "batch":
        raise InputError(
            "chrono.evaluation=batch routes by a whole batch, which decoding does not have: train with "
            "chrono.evaluation=frozen, whose last prices are a fixed bias"
        )


def check_pricing(
    chrono: ChronoSettings, model: ModelSettings, router: RouterSettings, micro_batch_tokens: int
) -> None:
    """Laws that look at the scores of a micro-batch as a whole."""
    if chrono.actuation != "selection":
        raise InputError(
            f"chrono.actuation={chrono.actuation}: {chrono.law} prices selection, use chrono.actuation=selection"
        )
    if router.top_k >= model.num_experts:
        raise InputError(
            f"router.top_k={router.top_k} sends every token to all experts and leaves chrono={chrono.law} nothing to "
            "balance: lower router.top_k or use chrono=off"
        )
    per_expert = micro_batch_tokens * router.top_k / model.num_experts
    if per_expert < ENOUGH_FOR_A_QUANTILE:
        least = -(-ENOUGH_FOR_A_QUANTILE * model.num_experts // router.top_k)
        raise InputError(
            f"chrono={chrono.law} needs at least {least} tokens in a micro-batch to price {model.num_experts} experts, "
            f"there are {micro_batch_tokens}: raise data.batch_size or data.seq_len"
        )
    if isinstance(chrono, QuantileSettings) and chrono.form == "histogram" and router.gate == "topk_softmax":
        raise InputError(
            "chrono.form=histogram needs scores in [0, 1], router.gate=topk_softmax ranks by logits: "
            "use router.gate=sigmoid or chrono.form=exact"
        )


def check_control(chrono: ControlSettings, model: ModelSettings, top_k: int) -> None:
    if chrono.layer_scales and len(chrono.layer_scales) != model.num_layers:
        raise InputError(
            f"chrono.layer_scales has {len(chrono.layer_scales)} entries for {model.num_layers} layers: give one each"
        )
    if any(scale < 0 for scale in chrono.layer_scales):
        raise InputError(f"chrono.layer_scales={chrono.layer_scales}: a scale is at least 0")
    if chrono.half_life_steps == 0:
        raise InputError("chrono.half_life_steps=0 remembers nothing: use a positive number, or null for the whole run")
    if getattr(chrono, "coherence", None) == "phi" and top_k == 1:
        raise InputError(
            "chrono.coherence=phi compares a token's experts, router.top_k=1 gives it one: use chrono.coherence=entropy"
        )
    if getattr(chrono, "coherence", None) == "alignment" and model.num_layers == 1:
        raise InputError("chrono.coherence=alignment compares layers, and there is one: use chrono.coherence=entropy")
