"""`python -m chronomoe.evaluate run=<dir>`: a trained model's loss and routing on its validation tokens.

Writes `evaluation.json` and `figures/specialisation.png` into the run's directory and prints a table.

| key | meaning |
|---|---|
| checkpoint, anchor, permutations, resamples, seed | how it was made |
| tokens, documents, domains | what was read: how many, how many, and their names |
| trained | loss, perplexity, `mean` over layers and `layers`: the metrics of `chronomoe/study/routing_readings.py` |
| untrained | the same of an untrained twin: same config and seed, fresh weights, no field |
| trained_minus_untrained | of every mean, on the same tokens: the headline of specialisation |
| references | domain readings of the oracle's routing (ceiling) and a random one (floor) of the same tokens, or null |
| saturation | with an anchor: how much of its routing the checkpoint has, `mean` and `layers`; null without one |
The twin's specialisation is the lexical floor: a router that learnt nothing still routes by token, and domains differ
in their words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chronomoe.chrono.laws import LAWS
from chronomoe.config import TrainConfig
from chronomoe.entry import guarded, read_arguments
from chronomoe.generate import load_model
from chronomoe.model.lm import LanguageModel
from chronomoe.settings import InputError, setting
from chronomoe.study.routing_readings import (
    Effort,
    Forward,
    LabelledTokens,
    read_model,
    read_references,
    read_saturation,
    run_model,
)
from chronomoe.whole_file import write_json

ROWS = {
    "max_vio": "MaxVio",
    "load_entropy": "load entropy",
    "token_entropy": "token entropy",
    "expert_information": "expert information (nats)",
    "dead_expert_frac": "dead experts",
    "dropped_frac": "dropped assignments",
    "lift_lowest": "lowest lift of a pair",
    "lift_highest": "highest lift of a pair",
    "domain_debiased": "domain specialisation, debiased",
    "separation_excess": "domain separation, beyond chance",
    "vocabulary_corrected": "vocabulary specialisation, beyond chance",
}


@dataclass(kw_only=True)
class EvaluateSettings:
    run: str = setting()
    """A run's directory."""
    checkpoint: str = setting("best")
    """Which of the run's checkpoints: best, last, or a step_N that trainer.keep_every_steps kept."""
    anchor: str | None = setting(None)
    """Another of them, such as last, to measure the router saturation of the first against; null: none."""
    permutations: int = setting(999, low=199)
    """Times the documents' domain labels are dealt anew for a null."""
    resamples: int = setting(2000, low=1000)
    """Times the documents are drawn anew for an interval."""
    seed: int = setting(0, low=0)
    """Of the permutations and resamples; the untrained twin has the run's own."""


def main() -> None:
    settings = read_arguments(EvaluateSettings, sys.argv[1:])
    run_dir = Path(settings.run)
    found = evaluate(run_dir, settings)
    write_json(run_dir / "evaluation.json", found)
    print(table(found))
    if "layers" in found["trained"] and len(found["domains"]) > 1:
        from chronomoe.study.run import Run
        from chronomoe.study.specialisation_figure import write_specialisation

        print(f"\n{write_specialisation(Run.load(run_dir), found)}")


def evaluate(run_dir: Path, settings: EvaluateSettings) -> dict[str, Any]:
    """Everything `evaluation.json` holds."""
    model, config = load_checkpoint(run_dir, "checkpoint", settings.checkpoint)
    anchor = None if settings.anchor is None else load_anchor(run_dir, settings.anchor, config)
    batches, tokens, end_of_document = read_validation(config)
    effort = Effort(settings.permutations, settings.resamples, settings.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def forward(name: str, candidate: LanguageModel) -> Forward:
        shown = with_progress(batches, f"evaluate: {name}")
        return run_model(candidate.to(device), shown, end_of_document, config.router.gate)

    forwards = {"trained": forward("trained", model), "untrained": forward("untrained", untrained_twin(config))}
    readings = {name: read_model(done, tokens, effort) for name, done in forwards.items()}
    trained, untrained = (readings[name].get("mean", {}) for name in ("trained", "untrained"))
    references = None
    if trained and len(tokens.domains) > 1 and config.router.kind != "expert_choice":
        references = read_references(tokens, config.model.num_experts, config.router.top_k, effort)
    return {
        "checkpoint": settings.checkpoint,
        "anchor": settings.anchor,
        "permutations": settings.permutations,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "tokens": len(tokens.token_ids_T),
        "documents": len(tokens.document_T.unique()),
        "domains": tokens.domains,
        **readings,
        "references": references,
        "trained_minus_untrained": {name: subtract(trained[name], untrained[name]) for name in trained},
        "saturation": None if anchor is None else read_saturation(forwards["trained"], forward("anchor", anchor)),
    }


def load_checkpoint(run_dir: Path, key: str, name: str) -> tuple[LanguageModel, TrainConfig]:
    """The model of the checkpoint that the setting `key` names, selecting as the run's own evaluations did."""
    there = sorted(path.stem for path in (run_dir / "checkpoints").glob("*.ckpt"))
    fallback = name == "best" and "last" in there  # stopped before its first evaluation
    if there and name not in there and not fallback:
        raise InputError(f"{key}={name} is no checkpoint of {run_dir}: there are {', '.join(there)}")
    model, config = load_model(run_dir, name)
    attach_solver(model, config)
    return model, config


def load_anchor(run_dir: Path, name: str, config: TrainConfig) -> LanguageModel:
    if config.model.dense or config.router.kind == "expert_choice":
        chosen = "a dense model" if config.model.dense else "router=expert_choice"
        raise InputError(f"anchor={name}: tokens of {chosen} choose no experts, so nothing saturates; leave anchor out")
    return load_checkpoint(run_dir, "anchor", name)[0]


def attach_solver(model: LanguageModel, config: TrainConfig) -> None:
    """A law that solves each evaluation batch's assignment did so in the run's own evaluations."""
    if getattr(config.chrono, "evaluation", "frozen") == "batch":
        model.attach([], LAWS[config.chrono.law].balancer(config.chrono), in_evaluation=True)


def untrained_twin(config: TrainConfig) -> LanguageModel:
    """The model as it was before its first step."""
    torch.manual_seed(config.seed)
    return LanguageModel(config.model, config.router, config.chrono.actuation).eval()


def read_validation(config: TrainConfig) -> tuple[list[dict[str, torch.Tensor]], LabelledTokens, int]:
    """The run's validation batches, their tokens' labels in the same order, and the end-of-document token."""
    from chronomoe.data.datamodule import LanguageDataModule
    from chronomoe.data.packing import prepare_corpus

    corpus = prepare_corpus(config.data, model_vocab_size=config.model.vocab_size, quiet=True)
    loader = LanguageDataModule(config.data, corpus=corpus, seed=config.seed, max_steps=1).val_dataloader()
    batches = list(loader)
    blocks = np.concatenate(list(loader.sampler))
    offsets = blocks[:, None] * config.data.seq_len + np.arange(config.data.seq_len)
    labels = corpus.label_tokens("val", offsets)
    token_ids_T = torch.cat([batch["input_ids"] for batch in batches]).flatten()
    document_T, domain_T = (torch.from_numpy(label.astype(np.int64)).flatten() for label in labels)
    return batches, LabelledTokens(token_ids_T, document_T, domain_T, corpus.domains), corpus.eos_id


def with_progress(batches: list[dict[str, torch.Tensor]], label: str) -> Iterable[dict[str, torch.Tensor]]:
    from tqdm import tqdm

    return tqdm(batches, desc=label, unit="batch", delay=2, disable=None, leave=False)


def subtract(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def table(found: dict[str, Any]) -> str:
    """Means over layers beside the untrained twin's, then the test of specialisation layer by layer."""
    trained, untrained = found["trained"], found["untrained"]
    lines = [
        f"{found['tokens']:,} tokens of {found['documents']:,} documents in {len(found['domains'])} domains "
        f"({', '.join(found['domains'])}), checkpoint {found['checkpoint']}",
        "",
        f"  {'mean over layers':<42}{'trained':>10}{'untrained':>11}{'difference':>12}",
        row("loss (nats per token)", trained["loss"], untrained["loss"], trained["loss"] - untrained["loss"]),
    ]
    if "layers" not in trained:
        return "\n".join(lines)
    difference = found["trained_minus_untrained"]
    lines += [row(label, trained["mean"][key], untrained["mean"][key], difference[key]) for key, label in ROWS.items()]
    lines += ["", f"  {'domain specialisation':<42}{'debiased':>10}{'95% interval':>20}{'p':>8}{'z':>8}{'floor':>9}"]
    for layer, (mine, floor) in enumerate(zip(trained["layers"], untrained["layers"], strict=True)):
        interval = f"{show(mine['domain_low'])} to {show(mine['domain_high'])}"
        lines.append(
            f"  {f'layer {layer}':<42}{show(mine['domain_debiased']):>10}{interval:>20}"
            f"{show(mine['domain_p_value'], '.3f'):>8}{show(mine['domain_z'], '.1f'):>8}"
            f"{show(floor['domain_debiased']):>9}"
        )
    for name, mine in (found["references"] or {}).items():
        interval = f"{show(mine['domain_low'])} to {show(mine['domain_high'])}"
        lines.append(
            f"  {f'{name} routing':<42}{show(mine['domain_debiased']):>10}{interval:>20}"
            f"{show(mine['domain_p_value'], '.3f'):>8}{show(mine['domain_z'], '.1f'):>8}"
        )
    if found["saturation"] is not None:
        title = f"router saturation against {found['anchor']}"
        lines += ["", f"  {title:<42}{'raw':>10}{'chance':>11}{'corrected':>12}"]
        for layer, reading in enumerate(found["saturation"]["layers"]):
            lines.append(row(f"layer {layer}", reading["agreement"], reading["chance"], reading["corrected"], ".4f"))
    return "\n".join(lines)


def row(label: str, first: float | None, second: float | None, third: float | None, form: str = "+.4f") -> str:
    return f"  {label:<42}{show(first):>10}{show(second):>11}{show(third, form):>12}"


def show(value: float | None, form: str = ".4f") -> str:
    return "–" if value is None else format(value, form)


if __name__ == "__main__":
    guarded(main)
