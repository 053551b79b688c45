"""The numbers of `summary.json`, each with its label, its unit and what it means in one line."""

from __future__ import annotations

from typing import Any, NamedTuple


class Number(NamedTuple):
    key: str
    label: str
    unit: str
    form: str
    """Format specification of the value."""
    meaning: str


NUMBERS = (
    Number("val_loss", "Validation loss", "nats/token", ".4f", "Cross-entropy on held-out documents; lower is better."),
    Number("val_perplexity", "Perplexity", "tokens", ",.2f", "exp(loss): as unsure as an even choice among so many."),
    Number("unigram_perplexity", "Unigram perplexity", "tokens", ",.1f", "The same from token frequencies alone."),
    Number(
        "max_vio_early", "MaxVio, first third", "excess", ".3f", "Busiest expert's load over its fair share, minus 1."
    ),
    Number("max_vio_late", "MaxVio, last 50 steps", "excess", ".3f", "The same at the end; 0 is an even load."),
    Number("val_max_vio", "MaxVio, held out", "excess", ".3f", "The same over all tokens of the last evaluation."),
    Number("load_entropy", "Load entropy", "of 1", ".4f", "Entropy of the experts' shares over ln E; 1 is even."),
    Number("dead_expert_frac", "Dead experts", "of all", ".1%", "Experts without a token for dead_after_steps steps."),
    Number(
        "expert_information", "Expert information", "nats", ".4f", "Mutual information of token and expert, held out."
    ),
    Number("val_token_entropy", "Token entropy", "of 1", ".4f", "Of one token's gate, over ln E, held out."),
    Number("tokens_per_sec", "Throughput", "tokens/s", ",.0f", "Training alone, over all devices."),
    Number("wall_seconds", "Wall time", "s", ",.1f", "From the start of the run to its last evaluation."),
    Number("steps", "Steps", "steps", ",", "Optimizer steps done."),
    Number("tokens", "Tokens", "tokens", ",", "Tokens trained on."),
    Number("num_params", "Parameters", "weights", ",", "All that is stored."),
    Number("num_active_params", "Active parameters", "weights", ",", "Those that act on one token."),
)


def show(value: Any, form: str = ",") -> str:
    """A number as text; a dash where the run left none; anything else as it is."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, int | float) else str(value)
