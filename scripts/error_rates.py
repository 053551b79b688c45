"""How often the statistics of a comparison are wrong, by simulation: the tables of docs/statistics.md.

    python scripts/error_rates.py

Coverage of the bootstrap interval, size and power of the sign-flip test, and false alarms of the association and of the
change points on curves that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from chronomoe.study.association import Panel, of_changes
from chronomoe.study.pairs import bootstrap_interval
from chronomoe.study.phases import ar1, find_phases
from chronomoe.study.run import Curve
from chronomoe.study.significance import least_p, sign_flip_p

STUDIES = 4_000
PAIRS = (3, 5, 10, 20)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
NOISES: dict[str, Draw] = {
    "Gaussian": lambda rng, size: rng.normal(size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size) - 1,
    "heavy-tailed (t, 3 degrees)": lambda rng, size: rng.standard_t(3, size=size),
}


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    head = list(head)
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(map(str, cells))} |")
    print()


def coverage(draw: Draw, pairs: int) -> float:
    """Share of studies whose interval holds the true mean difference, which is 0."""
    rng = np.random.default_rng(pairs)
    intervals = np.array([bootstrap_interval(draw(rng, pairs)) for _ in range(STUDIES)])
    return float(np.mean((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)))


def rejections(pairs: int, effect: float) -> float:
    """Share of studies with p <= 0.05, differences Gaussian with mean `effect` and unit deviation."""
    rng = np.random.default_rng(pairs)
    return float(np.mean([sign_flip_p(rng.normal(effect, 1, size=pairs)) <= 0.05 for _ in range(STUDIES)]))


def drifting(rng: np.random.Generator, seeds: int = 5, evaluations: int = 12) -> Panel:
    """Coherence and loss that fall together and have nothing to do with each other."""
    time = np.arange(evaluations)
    walks = rng.normal(size=(2, seeds, evaluations)).cumsum(axis=-1) * np.exp(-time / 6)
    coherence = 0.1 * np.exp(-time / 4) + 0.005 * walks[0]
    loss = 4 + 4 * np.exp(-time / 4) + 0.03 * walks[1]
    return Panel(list(range(seeds)), coherence, loss)


def shuffled_in_time(x_SK: NDArray[np.float64], y_SK: NDArray[np.float64], rng: np.random.Generator) -> float:
    """p of the mean correlation within runs, against the same with the times of each run shuffled."""

    def mean_correlation(other_SK: NDArray[np.float64]) -> float:
        return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(x_SK, other_SK, strict=True)]))

    observed = abs(mean_correlation(y_SK))
    null = [abs(mean_correlation(rng.permuted(y_SK, axis=1))) for _ in range(199)]
    return float((1 + np.sum(np.array(null) >= observed)) / 200)


def association_alarms(studies: int = 300) -> dict[str, float]:
    rng = np.random.default_rng(0)
    alarms = dict.fromkeys(("values, times shuffled", "changes, times shuffled", "changes, seeds exchanged (used)"), 0)
    for _ in range(studies):
        panel = drifting(rng)
        x, y = panel.coherence_SK, panel.loss_SK
        p_values = (
            shuffled_in_time(x, y, rng),
            shuffled_in_time(np.diff(x, axis=1), np.diff(y, axis=1), rng),
            of_changes([panel]).p,
        )
        for name, p in zip(alarms, p_values, strict=True):
            alarms[name] += p <= 0.05
    return {name: count / studies for name, count in alarms.items()}


def phase_alarms(coefficient: float, curves: int = 500) -> float:
    """Share of AR(1) curves without a change that are given one."""
    rng = np.random.default_rng(1)
    found = [find_phases(Curve(np.arange(150), ar1(rng, 150, coefficient))) for _ in range(curves)]
    return float(np.mean([len(phases.changes) > 0 for phases in found if phases is not None]))


def main() -> None:
    print("Coverage of the 95% interval\n")
    table(
        ["differences", *(f"{pairs} pairs" for pairs in PAIRS)],
        ([name, *(f"{coverage(draw, pairs):.1%}" for pairs in PAIRS)] for name, draw in NOISES.items()),
    )
    print("Sign-flip test: share of studies with p <= 0.05\n")
    sizes = (3, 5, 6, 8, 10, 20)
    rows = [[f"{effect:g} sd", *(f"{rejections(n, effect):.1%}" for n in sizes)] for effect in (0.0, 0.5, 1.0, 2.0)]
    least = ["(least p)", *(f"{least_p(n):.2g}" for n in sizes)]
    table(["effect", *(f"{pairs} pairs" for pairs in sizes)], [*rows, least])
    print("Independent drifting curves called associated at p <= 0.05 (5 seeds, 12 evaluations)\n")
    table(["measure, null", "share"], ([name, f"{share:.1%}"] for name, share in association_alarms().items()))
    print("AR(1) curves of 150 points without a change that are given one\n")
    coefficients = (0.0, 0.5, 0.8, 0.95)
    table(["coefficient", *coefficients], [["share", *(f"{phase_alarms(a):.1%}" for a in coefficients)]])


if __name__ == "__main__":
    main()
