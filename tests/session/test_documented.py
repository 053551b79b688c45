"""What the first prototype reported, and why: its signals on an untrained model, beside the measured ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from session_models import made_text

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.session.calibration import calibrate
from chronomoe.session.documented import UsageAverage
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings

UNTRAINED = ModelSettings(
    num_layers=2,
    num_experts=4,
    dim=64,
    hidden_dim=64,
    num_heads=4,
    num_kv_heads=2,
    vocab_size=200,
    max_seq_len=1024,
    tie_embeddings=True,
    init_std=0.02,
)


@pytest.fixture(scope="module")
def sessions() -> dict[str, Session]:
    """50 chunks of 10 tokens of an untrained model with tied embeddings, measured and as documented."""
    torch.manual_seed(42)
    model = LanguageModel(UNTRAINED, RouterSettings(kind="mixtral", top_k=2)).eval()
    with torch.no_grad():  # as the prototype began: larger than what the blocks add, so that a token answers itself
        model.embedding.weight.normal_(0.0, 0.1)
    calibration = calibrate(model, made_text(2000), block_tokens=256, least_tokens=2000)
    found = {}
    for signals in ("measured", "documented"):
        settings = SessionSettings(signals=signals, chunk_tokens=10, constraints=["none"])
        session = Session(model, calibration, settings)
        session.begin(torch.randint(200, (40,), generator=torch.Generator().manual_seed(0)).tolist())
        for _ in range(50):
            session.next_chunk()
            session.command("continue")
        found[signals] = session
    return found


def column(session: Session, name: str) -> np.ndarray:
    return np.array([getattr(chunk, name) for chunk in session.state.chunks])


def test_an_untrained_tied_model_repeats_its_last_token_and_is_flagged(sessions: dict[str, Session]) -> None:
    session = sessions["documented"]
    assert set(session.state.ids[40:]) == {session.state.ids[39]}
    assert all(chunk.degenerate for chunk in session.state.chunks[4:])


def test_the_documented_pressure_is_the_closed_form_of_constants(sessions: dict[str, Session]) -> None:
    P_mid = column(sessions["documented"], "P_mid")
    np.testing.assert_allclose(P_mid[5:], 0.640301, atol=1e-3)
    assert P_mid[5:].std() < 1e-3
    np.testing.assert_allclose(column(sessions["documented"], "P_slow"), 0.108104, atol=1e-6)
    assert P_mid.min() > P_mid[0] / 2, "no half-life could have been reached"


def test_the_documented_intent_never_left_zero(sessions: dict[str, Session]) -> None:
    assert not column(sessions["documented"], "rho").any()


def test_the_documented_collapse_of_entropy_is_a_repeated_token_going_where_it_goes(
    sessions: dict[str, Session],
) -> None:
    chunks = sessions["documented"].state.chunks
    usage = [chunk.last["usage_Hn"] for chunk in chunks]
    assert usage[0] > 0.85
    repeated = (500 / 540) * np.array([0.5, 0.5, 0, 0]) + (40 / 540) * 0.25  # behind a prompt that went everywhere
    assert usage[-1] == pytest.approx(-(repeated * np.log(repeated)).sum() / math.log(4), abs=0.02)
    assert usage[0] - usage[-1] > 0.25
    assert [chunk.inputs["Hn"] for chunk in chunks] == usage
    measured = [chunk.mean["Hn"] for chunk in chunks]
    assert max(measured[5:]) - min(measured[5:]) < 0.02, "no token became surer of its experts"


def test_the_documented_net_pressure_rises_by_the_sign_of_the_collapse_alone(sessions: dict[str, Session]) -> None:
    P_fast, P_net = column(sessions["documented"], "P_fast"), column(sessions["documented"], "P_net")
    assert P_fast[-1] > P_fast[0]
    assert P_net[-1] > P_net[0]


def test_measured_signals_of_the_same_text_are_not_the_constants(sessions: dict[str, Session]) -> None:
    chunk = sessions["measured"].state.chunks[0]
    assert chunk.ids == sessions["documented"].state.chunks[0].ids
    assert chunk.inputs["m"] > 0
    assert chunk.inputs["q"] != 0.8
    assert chunk.inputs["d_meso"] != 0.2
    assert abs(chunk.P_mid - 0.640301) > 0.01


def test_usage_of_one_repeated_token_tends_to_ln_k_over_ln_e() -> None:
    usage = UsageAverage(16)
    assert usage.Hn == pytest.approx(1.0)
    for _ in range(3000):
        usage.follow(np.array([[3, 7, 11]]))
    assert usage.Hn == pytest.approx(math.log(3) / math.log(16), abs=1e-6)
