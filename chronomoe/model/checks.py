"""Settings of `model` and `router` that contradict each other, and weights that are none. Each message names the key to
change and what fits."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import nn

from chronomoe.model.rwkv import HEAD_DIM
from chronomoe.model.schedule import RWKV, SCHEDULES, TRANSFORMER
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError


def check_finite(model: nn.Module, who: str) -> None:
    """Raises InputError for weights that no text can be read with."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
            raise InputError(f"{who}: {name} holds NaN or infinity; fetch it again, or take another checkpoint")


def check_model(model: ModelSettings) -> None:
    check_schedule(model)
    heads, kv_heads = model.num_heads, model.num_kv_heads
    if model.dim % heads or (model.dim // heads) % 2:
        fits = [n for n in range(1, model.dim // 2 + 1) if model.dim % (2 * n) == 0]
        nearest = min(fits, key=lambda n: abs(n - heads), default=1)
        raise InputError(
            f"model.num_heads={heads} does not divide model.dim={model.dim} into even heads: "
            f"the nearest that does is {nearest}"
        )
    if heads % kv_heads:
        nearest = min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - kv_heads))
        raise InputError(
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}: the nearest that does is {nearest}"
        )


def check_schedule(model: ModelSettings) -> None:
    schedule = model.schedule
    if schedule != "transformer" and schedule not in SCHEDULES:
        if set(schedule) - {TRANSFORMER, RWKV}:
            raise InputError(
                f"model.schedule={schedule} is none of transformer, {', '.join(SCHEDULES)}: or write the blocks one by "
                "one, such as RRRT"
            )
        if len(schedule) != model.num_layers:
            raise InputError(
                f"model.schedule={schedule} has {len(schedule)} blocks: write one letter for each of "
                f"model.num_layers={model.num_layers}"
            )
    try:
        share = Fraction(model.attention_share)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"model.attention_share={model.attention_share} is no fraction: write 1/4 or 0.25") from None
    if not 0 <= share <= 1:
        raise InputError(f"model.attention_share={model.attention_share} is not within 0 and 1: write 1/4 or 0.25")
    if schedule not in SCHEDULES and model.attention_share != ModelSettings.attention_share:
        raise InputError(
            f"model.attention_share={model.attention_share} has no meaning for model.schedule={schedule}, which knows "
            "every block: leave it out, or use model.schedule=hybrid"
        )
    if TRANSFORMER not in model.kinds and model.attention_window is not None:
        raise InputError(
            f"model.attention_window={model.attention_window} has no meaning where no block attends, as under "
            f"model.schedule={schedule} with model.num_layers={model.num_layers}: use model.attention_window=null"
        )
    if RWKV in model.kinds and model.dim % HEAD_DIM:
        nearest = max(1, round(model.dim / HEAD_DIM)) * HEAD_DIM
        raise InputError(
            f"model.dim={model.dim} does not divide into RWKV heads of {HEAD_DIM}: the nearest that does is {nearest}"
        )


def check_router(model: ModelSettings, router: RouterSettings, law: str) -> None:
    factor = router.capacity_factor
    if factor is not None and not 0 < factor < math.inf:
        raise InputError(
            f"router.capacity_factor={factor} leaves no room to count: use a positive number such as 1.25, or null to "
            "drop nothing"
        )
    if router.kind == "expert_choice":
        return check_expert_choice(model, router, law)
    if not router.causal:
        raise InputError(
            f"router.causal=false has no meaning for router.kind={router.kind}, which is causal: leave it out, or add "
            "router=expert_choice"
        )
    if router.top_k > model.num_experts:
        raise InputError(f"router.top_k={router.top_k} exceeds model.num_experts={model.num_experts}: lower the first")
    if router.kind == "switch" and router.top_k != 1:
        raise InputError(
            f"router.top_k={router.top_k}: Switch takes one expert per token: use router.top_k=1, or "
            "router=mixtral for more"
        )
    if router.kind == "switch" and router.gate != "softmax":
        raise InputError(
            f"router.gate={router.gate}: Switch weighs by the probability: use router.gate=softmax, or "
            "router=mixtral with router.top_k=1"
        )


def check_expert_choice(model: ModelSettings, router: RouterSettings, law: str) -> None:
    factor = router.capacity_factor
    if factor is None or factor > model.num_experts:
        raise InputError(
            f"router.capacity_factor={'null' if factor is None else factor}: expert choice needs the mean number of "
            f"experts per token, at most model.num_experts={model.num_experts}, such as 2"
        )
    if router.top_k != RouterSettings.top_k:
        raise InputError(
            f"router.top_k={router.top_k} has no meaning for router.kind=expert_choice, where experts take tokens: use "
            f"router.capacity_factor={router.top_k}"
        )
    if router.gate != "softmax":
        raise InputError(f"router.gate={router.gate}: expert choice compares probabilities: use router.gate=softmax")
    if router.jitter > 0:
        raise InputError(f"router.jitter={router.jitter} is for token choice: use router.jitter=0")
    if router.load_balancing_weight > 0:
        raise InputError(
            f"router.load_balancing_weight={router.load_balancing_weight}: expert choice balances by construction: "
            "use router.load_balancing_weight=0"
        )
    if law != "off":
        raise InputError(
            f"chrono.law={law} steers which experts a token chooses, and under router.kind=expert_choice experts "
            "choose: add chrono=off"
        )
