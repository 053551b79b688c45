"""Arms differ in what they insert and in nothing else."""

from __future__ import annotations

import pytest
from session_models import FAMILIES, VOCABULARY, go_on, made_text, open_session

from chronomoe.session.perturbation import ARMS, DOSES, Phrases, arm_ids, respond
from chronomoe.settings import InputError

PHRASES = Phrases(neutral=[4, 8, 15], offtopic=made_text(40, seed=3), blank=[2])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("dose", DOSES)
def test_an_arm_inserts_its_dose(arm: str, dose: int) -> None:
    ids = arm_ids(arm, dose, PHRASES, VOCABULARY, seed=0)
    assert len(ids) == (0 if arm == "none" else dose)
    assert all(0 <= token < VOCABULARY for token in ids)


def test_what_arms_insert() -> None:
    assert arm_ids("neutral", 5, PHRASES, VOCABULARY, seed=0) == [4, 8, 15, 4, 8]
    assert arm_ids("offtopic", 5, PHRASES, VOCABULARY, seed=0) == list(PHRASES.offtopic[:5])
    assert arm_ids("blank", 3, PHRASES, VOCABULARY, seed=0) == [2, 2, 2]
    random = [arm_ids("random", 32, PHRASES, VOCABULARY, seed=seed) for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


def test_arms_and_texts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="perturb=kind: there are none, neutral"):
        arm_ids("kind", 4, PHRASES, VOCABULARY, seed=0)
    with pytest.raises(InputError, match="perturb=offtopic: 40 tokens are too few for a dose of 50"):
        arm_ids("offtopic", 50, PHRASES, VOCABULARY, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_no_dose_is_no_perturbation(family: str, temperature: float) -> None:
    session = go_on(open_session(family, temperature=temperature), 2)
    snapshot = session.snapshot()
    uninterrupted = go_on(session, 3).state.chunks[2:]
    for arm in ARMS:
        response = respond(session, snapshot, arm_ids(arm, 0, PHRASES, VOCABULARY, seed=0), num_chunks=3)
        assert (response.work, response.inserted) == (0.0, 0)
        assert response.chunks == uninterrupted


def test_a_dose_costs_work_and_changes_what_follows() -> None:
    session = go_on(open_session(), 2)
    snapshot = session.snapshot()
    none = respond(session, snapshot, [], num_chunks=2)
    costs = {}
    for arm in ARMS[1:]:
        response = respond(session, snapshot, arm_ids(arm, 8, PHRASES, VOCABULARY, seed=0), num_chunks=2)
        assert [chunk.P_mid for chunk in response.chunks] != [chunk.P_mid for chunk in none.chunks]
        assert response.chunks[0].inserted == response.inserted == 8
        costs[arm] = response.work
    assert all(work > 0 for work in costs.values())
    assert len(set(costs.values())) == 4


def test_a_schedule_repeats_the_dose_at_every_pause() -> None:
    session = go_on(open_session(), 1)
    snapshot = session.snapshot()
    once, always = (
        respond(session, snapshot, [4, 8], num_chunks=3, schedule=schedule) for schedule in ("once", "every_pause")
    )
    assert [chunk.inserted for chunk in once.chunks] == [2, 0, 0]
    assert [chunk.inserted for chunk in always.chunks] == [2, 2, 2]
    assert once.chunks[0] == always.chunks[0]
    assert always.work == pytest.approx(sum(chunk.work for chunk in always.chunks))


def test_a_response_ends_with_the_text() -> None:
    drawn = go_on(open_session(temperature=1.0), 3)
    eos = drawn.state.ids[40 + 25]
    if eos in drawn.state.ids[40 : 40 + 25]:
        eos = next(token for token in range(VOCABULARY) if token in drawn.state.ids[50:])
    session = open_session(temperature=1.0, eos_id=eos)
    snapshot = session.snapshot()
    response = respond(session, snapshot, [], num_chunks=30)
    assert session.state.ended == "completed"
    assert len(response.chunks) < 30
