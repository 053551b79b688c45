"""What the command prints, always in the same order, so that nothing is left out because it is unwelcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chronomoe.halflife.arms import REAL
from chronomoe.halflife.quantities import PRIMARY


def table(found: dict[str, Any]) -> str:
    blocks = ["\n".join(lines(name, model)) for name, model in found["models"].items()]
    if found["contrast"]:
        blocks.append(
            "\n".join(["models held against each other, prompt by prompt", *map(contrast_line, found["contrast"])])
        )
    return "\n\n".join(blocks)


def lines(name: str, model: dict[str, Any]) -> Iterator[str]:
    real = model["arms"][REAL]
    decay, reach = real[PRIMARY], model["attainable"]
    yield f"{name}: {model['about']['num_moe_layers']} MoE layers, {model['about']['num_experts']} experts"
    absent = ", ".join(model["signals_absent"]) or "none"
    yield f"  signals       {len(model['signals'])} measured; absent: {absent}"
    half = "within" if reach["half_reachable"] else "outside"
    yield (
        f"  attainable    P_mid {number(reach['low'])} to {number(reach['high'])}, starts at {number(reach['start'])}; "
        f"half of it is {half}"
    )
    yield f"  texts         {real['texts']} ({counts(real['stops'])}), {real['degenerate']} degenerate"
    if real["without_chunk"]:
        yield (
            f"  texts         {real['without_chunk']} ended within their first chunk and have no series: see "
            "eos=ban, or prompts that ask for more"
        )
    yield f"  decay         {real['conclusion']}"
    yield f"  by text       {counts(decay['verdicts'])}; shape pooled over texts with phi {number(decay['phi'])}"
    if decay["survival"] is None:
        yield f"  half-life     {decay['survival_refused']}"
    else:
        survival = decay["survival"]
        reached = survival["median"]["estimate"] is not None
        median = f"median {interval(survival['median'])} chunks" if reached else "median not reached"
        yield (
            f"  half-life     {median}; {survival['events']} lost half, "
            f"{survival['censored']} censored, {survival['stopped']} ended themselves"
        )
    shares = model["variance_shares"]
    if shares:
        top = max(shares, key=lambda term: shares[term])
        yield f"  moved by      {', '.join(f'{term} {share:.0%}' for term, share in shares.items())}; most: {top}"
    yield f"  cliffs        {decay['cliffs']['found']} of {decay['cliffs']['tested']}"
    for arm, facts in model["arms"].items():
        if facts.get("entropy"):
            change = facts["entropy"]["change"]
            yield f"  entropy       {arm}: start minus end {interval(change)} ({facts['entropy']['label']})"
    yield from null_lines(model)
    for cell in model["perturbation"]["cells"]:
        responses = ", ".join(f"R_{j} {interval(found)}" for j, found in cell["response"].items())
        yield (
            f"  interruption  {cell['arm']} x {cell['dose']}: {responses}; W {number(cell['work'])} nats, "
            f"p {cell['corrected_p']:.3f}, n {cell['n']}, {cell['left_out']} left out"
        )
    yield f"  conclusion    {model['conclusion']}"


def null_lines(model: dict[str, Any]) -> Iterator[str]:
    nulls = model["nulls"]
    shuffled = nulls["shuffled"]
    if shuffled is None:
        yield "  null          shuffled chunks: no text is long enough"
    else:
        yield (
            f"  null          shuffled chunks: slope {number(shuffled['observed'])}, by chance "
            f"{number(shuffled['low'])} to {number(shuffled['high'])}, p {shuffled['p']:.3f}"
        )
    for name in ("constant", "reversed"):
        yield f"  null          {name}: {nulls[name]}"
    for arm, facts in model["arms"].items():
        if arm != REAL:
            yield f"  null          {arm}: {facts['conclusion']}"


def contrast_line(row: dict[str, Any]) -> str:
    return (
        f"  {row['quantity']}, {row['statistic']}: {row['one']} minus {row['other']} {interval(row['difference'])}, "
        f"n {row['prompts']}, corrected p {row['corrected_p']:.3f}"
    )


def counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.items())


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def interval(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    middle = number(found["estimate"])
    return middle if low is None and high is None else f"{middle} [{number(low)}, {number(high)}]"
