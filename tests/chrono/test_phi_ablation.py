"""What phi predicts: coherence of every expert against what held-out loss costs without it.

    python -m pytest tests/chrono/test_phi_ablation.py -s

prints Spearman correlations over layers x experts of tiny trained models; docs/coherence.md says what came out. Two
ablations: the expert's output is zeroed and no weight renormalised, or it is masked from selection and the next best
takes its place. Both are held-out loss minus the intact one, summed over tokens, per assignment of the intact model.

Axes: L MoE layers, E experts, B batch, S sequence, R seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.chrono.phi import PhiReading, decode, phi_probe
from chronomoe.model.lm import LanguageModel
from chronomoe.model.sensor import ASSIGNMENTS, PLAIN_CHANNELS
from chronomoe.model.settings import ModelSettings, RouterSettings

pytestmark = pytest.mark.slow

VOCAB, TOPICS, LENGTH, SEEDS, STEPS = 48, 4, 32, 5, 120
LEAST_ASSIGNMENTS = 40
"""Experts with fewer held-out assignments are left out: their loss per assignment is noise."""
SIGNALS = ("loo", "excess", "cross_token", "documented", "load")
ABLATIONS = ("zeroed", "masked")


class Study(NamedTuple):
    """One seed's trained model and what was read from it on held-out text."""

    model: LanguageModel
    held_out_BS: Tensor
    load_LE: Tensor
    phi: PhiReading
    cost: dict[str, Tensor]
    """Of each ablation: loss it adds per assignment, nats [L, E]."""


def write_text(sequences: int, seed: int) -> Tensor:
    """Sequences of one topic each; a topic is a table of four likely successors of every token. int64 [B, S + 1]."""
    tables = torch.Generator().manual_seed(99)
    successors_TV4 = torch.randint(VOCAB, (TOPICS, VOCAB, 4), generator=tables)
    generator = torch.Generator().manual_seed(seed)
    topic_B = torch.randint(TOPICS, (sequences,), generator=generator)
    columns = [torch.randint(VOCAB, (sequences,), generator=generator)]
    likely_4 = torch.tensor([0.6, 0.2, 0.15, 0.05])
    for _ in range(LENGTH):
        choice_B = torch.multinomial(likely_4, sequences, replacement=True, generator=generator)
        columns.append(successors_TV4[topic_B, columns[-1], choice_B])
    return torch.stack(columns, dim=1)


def loss_of(model: LanguageModel, text_BS: Tensor) -> Tensor:
    return cross_entropy(model(text_BS[:, :-1]).logits_BSV.flatten(0, 1), text_BS[:, 1:].flatten())


def train(seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    sizes = {"num_layers": 3, "num_experts": 8, "dim": 32, "hidden_dim": 32, "num_heads": 4, "num_kv_heads": 2}
    settings = ModelSettings(**sizes, vocab_size=VOCAB, max_seq_len=LENGTH, init_std=0.1)
    model = LanguageModel(settings, RouterSettings(kind="mixtral", top_k=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    text_BS = write_text(STEPS * 16, seed=1000 + seed)
    for batch_BS in text_BS.split(16):
        optimizer.zero_grad()
        loss_of(model, batch_BS).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def read_phi_of(model: LanguageModel, text_BS: Tensor) -> tuple[Tensor, PhiReading]:
    """(assignments [L, E], phi) over the text, in forwards small enough that every token is sampled."""
    model.attach([phi_probe(model.settings.dim)])
    model.train()
    for batch_BS in text_BS[:, :-1].split(256 // LENGTH):
        model(batch_BS)
    model.eval()
    sums_LEC = model.sensor_LEC
    return sums_LEC[..., ASSIGNMENTS], decode(sums_LEC[..., PLAIN_CHANNELS:])


@contextmanager
def ablated(model: LanguageModel, layer: int, expert: int, ablation: str) -> Iterator[None]:
    """The model without one expert: `zeroed` or `masked` from selection."""
    part, value = {
        "zeroed": (model.blocks[layer].ffn.experts.down_EDF[expert], 0.0),
        "masked": (model.expert_bias_LE[layer, expert], -1e9),
    }[ablation]
    before = part.detach().clone()
    with torch.no_grad():
        part.fill_(value)
        try:
            yield
        finally:
            part.copy_(before)


@torch.no_grad()
def ablate(model: LanguageModel, text_BS: Tensor, load_LE: Tensor, ablation: str) -> Tensor:
    intact = loss_of(model, text_BS)
    added_LE = torch.zeros(load_LE.shape)
    for layer, expert in torch.cartesian_prod(*map(torch.arange, load_LE.shape)).tolist():
        with ablated(model, layer, expert, ablation):
            added_LE[layer, expert] = loss_of(model, text_BS) - intact
    return added_LE * text_BS[:, 1:].numel() / load_LE.clamp(min=1)


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    found = []
    held_out_BS = write_text(40, seed=7)
    for seed in range(SEEDS):
        model = train(seed)
        load_LE, phi = read_phi_of(model, held_out_BS)
        cost = {ablation: ablate(model, held_out_BS, load_LE, ablation) for ablation in ABLATIONS}
        found.append(Study(model, held_out_BS, load_LE, phi, cost))
    return found


def ranks(values: Tensor) -> Tensor:
    """Ranks with ties at their mean, fp64."""
    return ((values[:, None] > values).double() + 0.5 * (values[:, None] == values).double()).sum(dim=1)


def spearman(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack((ranks(a), ranks(b))))[0, 1].item()


def correlations(study: Study, signal: str, ablation: str) -> tuple[float, float, int]:
    """(over all experts, mean over layers of those within one layer, number of experts)."""
    signal_LE = study.load_LE.double() if signal == "load" else getattr(study.phi, f"{signal}_LE").double()
    cost_LE = study.cost[ablation].double()
    used_LE = study.load_LE >= LEAST_ASSIGNMENTS
    layers = zip(signal_LE, cost_LE, used_LE, strict=True)
    within = [spearman(s[used], c[used]) for s, c, used in layers if used.sum() > 2]
    return spearman(signal_LE[used_LE], cost_LE[used_LE]), sum(within) / len(within), int(used_LE.sum())


def mean_and_interval(values_R: Tensor) -> str:
    """Mean and the 95% bootstrap interval over seeds."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(values_R), (4000, len(values_R)), generator=generator)
    low, high = values_R[draws].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=values_R.dtype)).tolist()
    return f"{values_R.mean().item():+.2f} ({low:+.2f} to {high:+.2f})"


def test_table_of_what_each_signal_predicts(studies: list[Study]) -> None:
    experts = [correlations(study, "load", "zeroed")[2] for study in studies]
    with torch.no_grad():
        losses_R = torch.stack([loss_of(study.model, study.held_out_BS) for study in studies])
    print(
        f"\nSpearman with loss added per assignment, {len(studies)} seeds of {min(experts)} to {max(experts)} experts"
    )
    print(f"held-out loss {losses_R.min():.2f} to {losses_R.max():.2f}, ln V = {torch.tensor(VOCAB).log():.2f}\n")
    print("| signal | zeroed, all layers | zeroed, within a layer | masked, all layers | masked, within a layer |")
    print("|---|---|---|---|---|")
    for signal in SIGNALS:
        table = [torch.tensor([correlations(study, signal, way)[:2] for study in studies]).T for way in ABLATIONS]
        assert torch.stack(table).isfinite().all()
        print(f"| {signal} | " + " | ".join(mean_and_interval(row_R) for rows in table for row_R in rows) + " |")


def test_the_models_learned_something_to_lose(studies: list[Study]) -> None:
    for study in studies:
        with torch.no_grad():
            assert loss_of(study.model, study.held_out_BS) < 0.85 * torch.tensor(VOCAB).log()


def test_an_expert_less_costs_loss_on_average_and_more_so_without_a_substitute(studies: list[Study]) -> None:
    total = {way: torch.stack([(s.cost[way] * s.load_LE).mean() for s in studies]) for way in ABLATIONS}
    assert (total["zeroed"] > 0).all()
    assert (total["masked"] > 0).all()
    assert total["zeroed"].mean() > total["masked"].mean()


def test_an_ablation_ends_where_it_began_and_an_unused_expert_costs_nothing(studies: list[Study]) -> None:
    model, held_out_BS = studies[0].model, studies[0].held_out_BS
    with torch.no_grad():
        intact = loss_of(model, held_out_BS)
        with ablated(model, 1, 3, "masked"):
            masked = loss_of(model, held_out_BS)
            assert masked != intact
            assert ablate(model, held_out_BS, studies[0].load_LE, "zeroed")[1, 3] == 0.0
        assert loss_of(model, held_out_BS) == intact
        with ablated(model, 0, 0, "zeroed"):
            assert loss_of(model, held_out_BS) != intact
        assert loss_of(model, held_out_BS) == intact


def test_the_probe_saw_every_held_out_token(studies: list[Study]) -> None:
    for study in studies:
        assert torch.equal(study.phi.tokens_LE, study.load_LE)
        assert not study.phi.excluded_LE.any()
