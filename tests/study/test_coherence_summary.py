"""What is said of coherence, in a line an arm and in JSON."""

from __future__ import annotations

import json

import numpy as np

from chronomoe.study.association import Panel, of_changes, of_ends
from chronomoe.study.coherence_summary import association_json, phases_json, say_association, say_phases
from chronomoe.study.phases import Phase, Phases

RNG = np.random.default_rng(0)


def panel(seeds: int) -> Panel:
    return Panel(list(range(seeds)), *RNG.normal(size=(2, seeds, 4)).cumsum(axis=-1))


def phases(*changes: int, label: str = "settling") -> Phases:
    first = Phase(1, 9, 1.0, 0.1, "start")
    return Phases([first, *(Phase(step, step + 9, 0.5, 0.1, label) for step in changes)], 0.01, 0.4)


def test_the_line_of_an_arm_holds_measure_null_p_and_n() -> None:
    one = panel(5)
    changes, ends = of_changes([one]), of_ends([one])
    line = say_association("pi", [one])
    assert line.startswith(
        f"pi: changes {changes.r:+.2f} (null 0.00 ± {changes.null_sd:.2f}, p {changes.p:.2g}, n 5 × 3)"
    )
    assert f"; end {ends.r:+.2f} (null 0.00 ± {ends.null_sd:.2f}, p {ends.p:.2g}, n 5 × 1); over time" in line
    assert len(line) <= 125


def test_arms_together_have_no_correlation_over_time() -> None:
    assert "over time" not in say_association("all", [panel(5), panel(5)])


def test_a_single_seed_is_said_to_be_too_few() -> None:
    assert say_association("pi", [panel(1)]).count("too few seeds") == 2


def test_phases_are_counted_over_seeds() -> None:
    found = [phases(11, 31), phases(21), phases(), phases(41, label="exploration")]
    assert say_phases("pi", found) == (
        "pi: changes of phase in 3 of 4 seeds (median 1, the last at step 31); exploration in 1"
    )
    assert say_phases("pi", [phases()]) == "pi: changes of phase in 0 of 1 seeds"


def test_all_of_it_is_json() -> None:
    written = json.loads(
        json.dumps({"a": association_json({"pi": panel(3), "off": panel(1)}), "p": phases_json({4: phases(11)})})
    )
    assert written["a"]["arms"]["off"]["changes"] is None
    assert written["a"]["arms"]["pi"]["ends"]["columns"] == 1
    assert written["a"]["together"] == {"changes": None, "ends": None}
    assert written["p"]["4"]["phases"][1] == phases(11).phases[1]._asdict()
