"""A session measures what it generates, generates what plain decoding would, and stops where it should."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from session_models import FAMILIES, VOCABULARY, calibrated, go_on, made_text, open_session
from torch import nn

import chronomoe.session
from chronomoe.model.generation import generate
from chronomoe.session.chunk import Chunk
from chronomoe.session.commands import Command
from chronomoe.session.pressures import Inputs
from chronomoe.session.reading import read
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.session.telemetry import replay
from chronomoe.session.token_record import GENERATED, INSERTED, TokenRecord
from chronomoe.settings import InputError, RunFailed

by_family = pytest.mark.parametrize("family", FAMILIES)
DECODING = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 1.0}}
by_decoding = pytest.mark.parametrize("decoding", DECODING.values(), ids=DECODING.keys())


def next_chunk(session: Session) -> Chunk:
    chunk = session.next_chunk()
    assert chunk is not None
    return chunk


@by_family
@by_decoding
def test_a_session_writes_what_plain_generation_writes(family: str, decoding: dict) -> None:
    session = go_on(open_session(family, **decoding), 6)
    prompt = torch.tensor([made_text(40, seed=7)])
    tokens = generate(
        session.model, prompt, max_new_tokens=60, top_p=0.95, generator=torch.Generator().manual_seed(42), **decoding
    )
    assert session.state.ids[40:] == [int(token) for token in tokens]


@by_family
def test_one_forward_per_token_and_none_twice(family: str) -> None:
    model, calibration = calibrated(family)
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    session = Session(model, calibration, SessionSettings(chunk_tokens=10))
    session.begin(made_text(40))
    go_on(session, 2)
    session.insert([1, 2, 3])
    session.next_chunk()
    hook.remove()
    assert lengths == [40] + [1] * 20 + [3] + [1] * 10


@by_family
def test_a_chunks_signals_are_those_of_a_single_forward_over_the_whole_text(family: str) -> None:
    session = open_session(family, temperature=1.0)
    next_chunk(session)
    session.command("continue")
    chunk = next_chunk(session)
    model, ids = session.model, session.state.ids
    whole = read(model, ids, model.new_state(1))
    own = slice(chunk.start, chunk.start + 10)
    assert ids[own] == chunk.ids
    p_SLE = whole.probabilities_SLE[own]
    H_SL = -(p_SLE * np.log(p_SLE)).sum(axis=-1)
    nats = math.log(model.settings.num_experts)
    assert chunk.mean["Hn"] == pytest.approx(H_SL.mean() / nats, abs=1e-5)
    assert chunk.last["Hn"] == pytest.approx(H_SL[-1].mean() / nats, abs=1e-5)
    np.testing.assert_allclose(chunk.H_L, H_SL.mean(axis=0), atol=1e-4)
    usage_L = -(p_SLE.mean(axis=0) * np.log(p_SLE.mean(axis=0))).sum(axis=-1)
    assert chunk.H_use == pytest.approx(usage_L.mean(), abs=1e-5)
    assert chunk.information == pytest.approx(chunk.H_use - np.mean(chunk.H_L), abs=1e-9)
    top_S2 = whole.logits_SV[chunk.start - 1 : chunk.start + 9].softmax(dim=-1).topk(2).values.numpy()
    assert chunk.mean["m"] == pytest.approx((top_S2[:, 0] - top_S2[:, 1]).mean(), abs=1e-4)
    before = 1 - chunk.mean["Hn"] - (1 - session.state.chunks[0].mean["Hn"])
    assert chunk.dC == pytest.approx(before, abs=1e-12)
    assert chunk.inputs["dR"] == chunk.dC


def test_the_first_chunk_is_held_against_the_prompt() -> None:
    session = open_session()
    prompt_C = np.mean([1 - record.Hn for record in session.state.tokens])
    chunk = next_chunk(session)
    assert len(session.state.tokens) == 39 + 10
    assert chunk.dC == pytest.approx(chunk.mean["C"] - prompt_C, abs=1e-12)


@pytest.mark.parametrize("aggregate", ["chunk_mean", "last_token"])
@pytest.mark.parametrize("source", ["basin", "routing"])
def test_pressures_are_fed_what_the_settings_say(aggregate: str, source: str) -> None:
    session = open_session(aggregate=aggregate, q_source=source)
    chunk = next_chunk(session)
    values = chunk.mean if aggregate == "chunk_mean" else chunk.last
    q = values["q" if source == "basin" else "J"]
    expected = {name: values[name] for name in ("Hn", "m_r", "m", "d_meso", "d_macro", "v")}
    assert {name: chunk.inputs[name] for name in expected} == expected
    assert chunk.inputs["q"] == q
    assert chunk.inputs["c_s"] == chunk.last["c_s"]
    step = session.state.tokens[-2].Hn - session.state.tokens[-1].Hn
    assert chunk.inputs["dR"] == pytest.approx(chunk.dC if aggregate == "chunk_mean" else step, abs=1e-12)


def test_no_constraints_means_no_penalty_and_says_so() -> None:
    session = open_session(constraints=["none"])
    chunk = next_chunk(session)
    assert session.signals_absent == session.telemetry().about["signals_absent"] == ["v"]
    assert "v" not in chunk.mean
    assert chunk.inputs["v"] is None
    assert "v" not in session.telemetry().tokens
    assert open_session().signals_absent == []


def test_a_multistep_session_waits_for_an_answer_after_every_chunk() -> None:
    session = open_session()
    assert next_chunk(session).pause_reason == "multistep_chunk_complete"
    with pytest.raises(InputError, match="waits at a pause"):
        session.next_chunk()
    assert session.command("Continue ") is Command.CONTINUE
    assert next_chunk(session).index == 1


def test_a_single_turn_goes_on_by_itself_and_its_intent_follows_the_pressure() -> None:
    session = open_session(mode="single_turn")
    rho = 0.0
    for _ in range(8):
        chunk = next_chunk(session)
        assert (chunk.pause_reason, chunk.rho_before) == (None, rho)
        rho = 0.7 * rho + 0.3 * max(0.0, chunk.P_mid)
        assert chunk.rho == pytest.approx(rho)
        assert chunk.w_mid == 0.5 + 0.5 * chunk.rho_before


def test_documented_intent_stays_at_zero_in_multistep_and_a_carried_one_does_not() -> None:
    assert all(chunk.rho == 0 for chunk in go_on(open_session(), 4).state.chunks)
    assert go_on(open_session(rho_rule="carry"), 4).state.rho > 0.1


@pytest.mark.parametrize("word", ["reset", "end loop"])
def test_reset_and_end_zero_the_intent(word: str) -> None:
    session = go_on(open_session(rho_rule="carry"), 2)
    assert session.state.rho > 0
    session.command(word)
    assert session.state.rho == 0


def test_a_reset_empties_the_history_and_keeps_text_and_clocks() -> None:
    session = go_on(open_session(), 3)
    aggregate, updates = session.aggregate(), session.state.meter.clocks.updates
    assert aggregate is not None
    assert aggregate[:3] == (3, 30, 10.0)
    assert aggregate.mean_P_net == pytest.approx(np.mean([chunk.P_net for chunk in session.state.chunks]))
    assert aggregate.pauses == {"multistep_chunk_complete": 3}
    session.command("reset")
    assert session.aggregate() is None
    assert (session.state.meter.clocks.updates, len(session.state.ids)) == (updates, 70)
    go_on(session, 1)
    again = session.aggregate()
    assert again is not None
    assert again.chunks == 1


def test_the_end_is_the_end() -> None:
    session = go_on(open_session(), 1)
    session.command("stop")
    with pytest.raises(InputError, match=r"ended \(end\)"):
        session.next_chunk()


def test_the_mode_can_be_changed_on_the_way() -> None:
    session = go_on(open_session(), 1)
    session.command("single")
    assert next_chunk(session).pause_reason is None
    session.command("/multistep")
    assert next_chunk(session).pause_reason == "multistep_chunk_complete"


@by_family
def test_a_given_text_is_measured_as_if_it_had_been_generated(family: str) -> None:
    drawn = go_on(open_session(family, temperature=1.0), 3)
    forced = open_session(family)
    for chunk in drawn.state.chunks:
        again = forced.next_chunk(given=chunk.ids)
        forced.command("continue")
        assert again is not None
        assert again.forced
        assert replace(again, forced=False) == chunk
    with pytest.raises(InputError, match="9 tokens were given for a chunk of chunk_tokens=10"):
        forced.next_chunk(given=[1] * 9)


def test_a_repeated_token_ends_the_prototypes_entropy_and_no_tokens_own() -> None:
    session = open_session(prompt=[5] * 64)
    for _ in range(30):
        session.next_chunk(given=[5] * 10)
        session.command("continue")
    usage = [chunk.last["usage_Hn"] for chunk in session.state.chunks]
    visited = session.telemetry().tokens["expert_ids_LK"][:, -1]
    assert len(np.unique(visited)) == 2
    assert usage[-1] == pytest.approx(math.log(2) / math.log(8), abs=1e-3)
    measured = [chunk.mean["Hn"] for chunk in session.state.chunks]
    assert max(measured) - min(measured) < 1e-3


def test_a_model_that_breaks_is_an_error_that_names_the_signal() -> None:
    session = go_on(open_session(), 1)
    weight = session.model.blocks[0].ffn.router.gate.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(RunFailed, match="signal Hn is nan"):
            session.next_chunk()
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_nothing_in_the_room_stands_in_for_a_signal() -> None:
    """Outside documented.py, which says so, no signal is given a number where it is missing."""
    stand_in = re.compile(r"nan_to_num|\.get\([^()]*,\s*-?\d|\bor\s+\d+\.\d|fillna|setdefault")
    signals = {*TokenRecord._fields, *Inputs._fields, "v"}
    for file in Path(chronomoe.session.__file__).parent.glob("*.py"):
        if file.name == "documented.py":
            continue
        source = file.read_text()
        assert not stand_in.search(source), file.name
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                with_default = {a.arg for a in node.args.args[len(node.args.args) - len(node.args.defaults) :]}
                with_default |= {
                    a.arg for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if d is not None
                }
                assert not with_default & signals, f"{file.name}: {node.name}"
    assert TokenRecord._field_defaults == Inputs._field_defaults == {}


def test_any_other_text_is_left_to_the_caller() -> None:
    session = open_session()
    next_chunk(session)
    before = session.state.ids.copy()
    assert session.command("continue.") is Command.PERTURBATION
    assert session.state.ids == before
    assert session.state.paused


@by_family
@by_decoding
def test_work_is_the_summed_surprisal_of_what_was_inserted(family: str, decoding: dict) -> None:
    session = go_on(open_session(family, **decoding), 1)
    ids = [3, 17, 17, 5]
    work = session.insert(ids)
    text = torch.tensor([session.state.ids])
    with torch.no_grad():
        logp_SV = session.model(text).logits_BSV[0].float().log_softmax(dim=-1)
    expected = -sum(float(logp_SV[position - 1, text[0, position]]) for position in range(50, 54))
    assert work == pytest.approx(expected, rel=1e-4)
    chunk = next_chunk(session)
    assert (chunk.inserted, chunk.work) == (4, pytest.approx(work))
    session.command("continue")
    assert (next_chunk(session).inserted, session.state.chunks[-1].work) == (0, 0)


def test_inserted_tokens_are_in_clocks_and_state_and_in_no_statistic() -> None:
    session = go_on(open_session(), 2)
    updates, window = session.state.meter.clocks.updates, list(session.state.meter.recent_ids)
    session.insert([9] * 6)
    assert session.state.meter.clocks.updates == updates + 6
    assert session.state.stream.position == len(session.state.ids) == 66
    assert list(session.state.meter.recent_ids) == window
    chunk = next_chunk(session)
    tokens = session.telemetry().tokens
    generated = (tokens["kind"] == GENERATED) & (tokens["chunk"] == 2)
    assert generated.sum() == 10
    assert tokens["token"][generated].tolist() == chunk.ids
    assert chunk.start == 66
    assert chunk.mean["Hn"] == pytest.approx(tokens["Hn"][generated].mean(), abs=1e-15)
    inserted = tokens["kind"] == INSERTED
    assert tokens["token"][inserted].tolist() == [9] * 6
    assert tokens["t"].tolist() == list(range(1, 76))


@pytest.fixture(scope="module")
def ending() -> tuple[int, int]:
    """A token that the sampled standard session writes, and the place of the first one among what it generates."""
    generated = go_on(open_session(temperature=1.0), 3).state.ids[40:]
    token = max(generated, key=generated.index)  # the one that first comes latest
    return token, generated.index(token)


def test_the_end_of_a_document_ends_the_session_and_is_not_appended(ending: tuple[int, int]) -> None:
    token, place = ending
    session = open_session(temperature=1.0, eos_id=token)
    while session.state.ended is None:
        session.next_chunk()
        session.command("continue")
    assert session.state.ended == "completed"
    assert len(session.state.ids) == 40 + place
    assert token not in session.state.ids[40:]
    with pytest.raises(InputError, match=r"ended \(completed\)"):
        session.next_chunk()


@pytest.mark.parametrize("kept", [True, False], ids=["half a chunk", "less"])
def test_a_piece_is_a_chunk_from_half_a_chunk_on(ending: tuple[int, int], kept: bool) -> None:
    token, place = ending
    size = 2 * place if kept else 2 * place + 1
    session = open_session(temperature=1.0, eos_id=token, chunk_tokens=size)
    chunk = session.next_chunk()
    assert [len(found.ids) for found in session.state.chunks] == ([place] if kept else [])
    assert (chunk is None) == (not kept)
    tokens = session.telemetry().tokens
    assert (tokens["chunk"][tokens["kind"] == GENERATED] == (0 if kept else -1)).tolist() == [True] * place


def test_a_text_that_ended_by_itself_can_be_perturbed_and_one_that_was_ended_cannot(ending: tuple[int, int]) -> None:
    token, place = ending
    session = open_session(temperature=1.0, eos_id=token, chunk_tokens=2 * place + 1)
    assert session.next_chunk() is None
    snapshot = session.snapshot()
    session.insert([1, 2, 3])
    chunk = session.next_chunk(given=[5] * (2 * place + 1))
    assert chunk is not None
    assert (chunk.index, chunk.inserted, chunk.start) == (0, 3, 40 + place + 3)
    assert replay(session.telemetry())[0].P_net == pytest.approx(chunk.P_net, abs=1e-12)
    session.restore(snapshot)
    assert session.insert([]) == 0.0
    assert session.state.ended is None
    session.restore(snapshot)
    session.command("end")
    with pytest.raises(InputError, match="the session was ended"):
        session.insert([1])


def test_a_banned_end_is_never_drawn_and_leaves_the_signals_unmodified(ending: tuple[int, int]) -> None:
    session = go_on(open_session(temperature=1.0, eos_id=ending[0], eos="ban"), 4)
    generated = session.state.ids[40:]
    assert ending[0] not in generated
    assert len(generated) == 40
    text = torch.tensor([session.state.ids])
    with torch.no_grad():
        logp_SV = session.model(text).logits_BSV[0].float().log_softmax(dim=-1)
    found = [record.surprisal for record in session.state.tokens if record.kind == GENERATED]
    expected = [-float(logp_SV[39 + i, token]) for i, token in enumerate(generated)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_text_that_repeats_itself_is_flagged() -> None:
    session = open_session(temperature=0.0)
    with torch.no_grad():
        kept = session.model.head.weight.clone()
        session.model.head.weight.zero_()  # every logit is 0, and the first token is taken again and again
        chunks = go_on(session, 6).state.chunks
        session.model.head.weight.copy_(kept)
    assert [chunk.degenerate for chunk in chunks] == [False] * 3 + [True] * 3
    assert chunks[-1].distinct4 < 0.3
    assert not any(chunk.degenerate for chunk in go_on(open_session(temperature=1.0), 6).state.chunks)


@by_family
def test_control_changes_effective_signals_and_leaves_the_first_layers_clean_ones(family: str) -> None:
    session = open_session(family)
    plain = session.state.tokens
    model = session.model
    try:
        nn.init.normal_(model.expert_bias_LE, generator=torch.Generator().manual_seed(0))
        session.begin(made_text(40, seed=7))
        steered = session.state.tokens
    finally:
        nn.init.zeros_(model.expert_bias_LE)
    assert all(one.H_L[0] == two.H_L[0] for one, two in zip(plain, steered, strict=True))
    assert any(one.H_L[1] != two.H_L[1] for one, two in zip(plain, steered, strict=True))
    assert all(one.Hn_effective == pytest.approx(one.Hn, abs=1e-6) for one in plain)
    assert any(abs(two.Hn_effective - two.Hn) > 1e-3 for two in steered)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos": "ban"}, "eos=ban needs"),
        ({"eos_id": 40}, "eos_id=40 is no token of a vocabulary of 40"),
        ({"constraints": ["surprize"]}, "constraints="),
        ({"signals": "documented", "aggregate": "chunk_mean"}, "aggregate=chunk_mean"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_contradict_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        open_session(**settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1] * 31, "31 tokens and the clocks need 32"),
        ([1] * 1020, "exceed the model's longest text of 1024"),
        ([VOCABULARY] * 40, "40 is no token"),
    ],
    ids=["short", "long", "foreign"],
)
def test_prompts_that_cannot_be_measured_are_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_session(prompt=prompt)


def test_a_session_without_a_text_says_so() -> None:
    model, calibration = calibrated("mixtral")
    with pytest.raises(InputError, match="begin it with a prompt"):
        Session(model, calibration, SessionSettings()).next_chunk()


def test_a_session_stops_where_the_model_can_read_no_further() -> None:
    session = open_session(prompt=made_text(1010))
    go_on(session, 1)
    assert session.room == 4
    with pytest.raises(InputError, match="4 tokens fit"):
        session.next_chunk()
    with pytest.raises(InputError, match="leave no room"):
        session.insert([1, 2])


def test_a_shortest_prompt_has_defined_signals_from_the_first_generated_token_on() -> None:
    session = open_session(prompt=made_text(32))
    assert all(math.isfinite(value) for value in next_chunk(session).mean.values())
