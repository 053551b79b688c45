"""What was claimed of the CDRmix prototype, measured on a trained hybrid and on the sizes in `configs/model`.

    python scripts/hybrid_claims.py RUN [--sequences 16] [--output outputs/hybrid_claims.json]

| row | how |
|---|---|
| streaming | hidden states behind the last norm of validation texts, read in pieces and token by token, against the whole: largest difference relative to the largest entry, in fp64 and fp32; in fp32 only of tokens whose routing is clear (gap of the k-th and next gate logit above 1e-4 in every layer, at every token before), the others' flipped selections are counted |
| entropy | of the router's softmax over all experts, mean over tokens and per layer; ln E is the most there is |
| capacity | the same texts in training mode: filled slots, dropped assignments, largest load over capacity |
| experts | parameters of one expert over all layers against the target its name states, closed form |
"""  # noqa: E501 (rows of a table)

from __future__ import annotations

import argparse
import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chronomoe.config import compose_config
from chronomoe.evaluate import read_validation
from chronomoe.generate import load_model
from chronomoe.model.lm import LanguageModel
from chronomoe.model.router import RouterOutput
from chronomoe.model.sizing import parts

MARGIN = 1e-4
TARGETS = {"cdrmix_1b": 125e6, "cdrmix_4b": 500e6, "cdrmix_40b": 5e9, "cdrmix_200b": 25e9}


def read(model: LanguageModel, ids_BS: Tensor, piece: int) -> tuple[Tensor, list[Tensor]]:
    """Hidden states [B, S, D], and each layer's chosen experts [B, S, K] in ascending order."""
    state = model.new_state(len(ids_BS)) if piece < ids_BS.shape[1] else None
    with torch.no_grad():
        outputs = [model(part_BS, state=state) for part_BS in ids_BS.split(piece, dim=1)]
    chosen = [[routing.topk_expert_ids_TK.view(len(ids_BS), -1, 2) for routing in out.routings] for out in outputs]
    layers = [torch.cat(of_layer, dim=1).sort(dim=-1).values for of_layer in zip(*chosen, strict=True)]
    return torch.cat([output.hidden_BSD for output in outputs], dim=1), layers


def clear_tokens(routings: list[RouterOutput], batch: int) -> Tensor:
    """bool [B, S]: routed by more than MARGIN in every layer, and so are all tokens before."""
    clear_BS = torch.ones((), dtype=torch.bool)
    for routing in routings:
        top_k = routing.topk_expert_ids_TK.shape[1]
        sorted_TE = routing.logits_TE.sort(dim=-1, descending=True).values
        clear_BS = clear_BS & ((sorted_TE[:, top_k - 1] - sorted_TE[:, top_k]) > MARGIN).view(batch, -1)
    return clear_BS.cummin(dim=1).values


def measure_streaming(model: LanguageModel, ids_BS: Tensor) -> list[dict[str, Any]]:
    rows = []
    for dtype in (torch.float64, torch.float32):
        cast = copy.deepcopy(model).to(dtype).eval()
        with torch.no_grad():
            output = cast(ids_BS)
        whole_BSD, chosen = read(cast, ids_BS, ids_BS.shape[1])
        clear_BS = clear_tokens(output.routings, len(ids_BS))
        if dtype == torch.float64:
            clear_BS = torch.ones_like(clear_BS)
        for name, piece in (("pieces of 50", 50), ("token by token", 1)):
            found_BSD, other = read(cast, ids_BS, piece)
            error_BS = (found_BSD - whole_BSD).abs().amax(dim=-1) / whole_BSD.abs().max()
            flips = sum(int((a != b).any(dim=-1).sum()) for a, b in zip(chosen, other, strict=True))
            rows.append({
                "dtype": str(dtype).removeprefix("torch."), "split": name, "worst": float(error_BS[clear_BS].max()),
                "tokens_compared": int(clear_BS.sum()), "tokens": clear_BS.numel(),
                "flipped_selections": flips, "selections": clear_BS.numel() * len(chosen),
            })  # fmt: skip
    return rows


def measure_entropy(model: LanguageModel, ids_BS: Tensor) -> dict[str, Any]:
    with torch.no_grad():
        routings = model.eval()(ids_BS).routings
    layers = []
    for routing in routings:
        log_p_TE = routing.logits_TE.log_softmax(dim=-1)
        layers.append(float(-(log_p_TE.exp() * log_p_TE).sum(dim=-1).mean()))
    return {"layers": layers, "mean": sum(layers) / len(layers), "most": math.log(routings[0].logits_TE.shape[-1])}


def measure_capacity(model: LanguageModel, ids_BS: Tensor) -> dict[str, float]:
    """Of micro-batches as training sees them."""
    model.train()
    model.sensing = False
    filled, dropped, fullest = [], [], []
    with torch.no_grad():
        for part_BS in ids_BS.split(16):
            for routing in model(part_BS).routings:
                counts_E, slots = routing.tokens_per_expert_E, routing.capacity
                assert slots is not None, "this run's router has no capacity"
                filled.append(float(counts_E.clamp(max=slots).sum() / (slots * len(counts_E))))
                dropped.append(float((counts_E - slots).clamp(min=0).sum() / counts_E.sum()))
                fullest.append(float(counts_E.max() / slots))
    model.eval()
    return {"filled": sum(filled) / len(filled), "dropped": sum(dropped) / len(dropped), "worst_load": max(fullest)}


def measure_experts() -> dict[str, dict[str, float]]:
    found = {}
    for name, target in TARGETS.items():
        config = compose_config([f"model={name}"])
        one = parts(config.model, config.router)["experts"].stored / config.model.num_experts
        found[name] = {"target": target, "one_expert": one, "error": one / target - 1}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="The prototype's claims, measured.")
    parser.add_argument("run", type=Path, help="directory of a run of a hybrid with router=cdrmix")
    parser.add_argument("--sequences", type=int, default=16, help="validation sequences that are streamed")
    parser.add_argument("--output", default="outputs/hybrid_claims.json", help="where the numbers go")
    chosen = parser.parse_args()
    model, config = load_model(chosen.run, "best")
    batches, _, _ = read_validation(config)
    ids_BS = torch.cat([batch["input_ids"] for batch in batches])
    found = {
        "run": str(chosen.run),
        "streaming": measure_streaming(model, ids_BS[: chosen.sequences]),
        "entropy": measure_entropy(model, ids_BS),
        "capacity": measure_capacity(model, ids_BS),
        "experts": measure_experts(),
    }
    path = Path(chosen.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
