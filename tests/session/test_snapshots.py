"""A moment come back to, in memory or from the disk, goes on bit for bit as it did."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from session_models import FAMILIES, calibrated, go_on, made_text, open_session
from torch import nn

from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.settings import InputError

by_family = pytest.mark.parametrize("family", FAMILIES)
by_decoding = pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])


def same(one: Session, other: Session) -> bool:
    """Every token, every number of every record and chunk, and what the meter remembers."""
    a, b = one.telemetry(), other.telemetry()
    columns = a.tokens.keys() == b.tokens.keys() and all(
        np.array_equal(a.tokens[name], b.tokens[name], equal_nan=a.tokens[name].dtype.kind == "f") for name in a.tokens
    )
    counts = np.array_equal(one.state.meter.transitions.counts_BB, other.state.meter.transitions.counts_BB)
    clocks = np.array_equal(one.state.meter.clocks.centroid_JX, other.state.meter.clocks.centroid_JX)
    chunks = [asdict(chunk) for chunk in a.chunks] == [asdict(chunk) for chunk in b.chunks]
    return columns and counts and clocks and chunks and one.state.ids == other.state.ids


@by_family
@by_decoding
def test_the_arm_without_perturbation_is_the_uninterrupted_session(family: str, temperature: float) -> None:
    uninterrupted = go_on(open_session(family, temperature=temperature), 6)
    session = go_on(open_session(family, temperature=temperature), 3)
    snapshot = session.snapshot()
    session.insert([1, 2, 3, 4])
    go_on(session, 2)
    assert session.state.ids[:70] == uninterrupted.state.ids[:70]
    assert not same(session, uninterrupted)
    for _ in range(2):  # a snapshot can be come back to as often as one likes
        session.restore(snapshot)
        assert session.insert([]) == 0.0
        go_on(session, 3)
        assert same(session, uninterrupted)


@by_family
@by_decoding
def test_a_session_from_the_disk_goes_on_bit_for_bit(family: str, temperature: float, tmp_path: Path) -> None:
    uninterrupted = go_on(open_session(family, temperature=temperature, rho_rule="carry"), 6)
    session = go_on(open_session(family, temperature=temperature, rho_rule="carry"), 2)
    session.insert([5, 6])
    session.save(tmp_path / "session.pt")
    expected = go_on(session, 3)
    model, calibration = calibrated(family)
    resumed = Session(model, calibration, session.settings)
    resumed.load(tmp_path / "session.pt")
    go_on(resumed, 3)
    assert same(resumed, expected)
    assert not same(resumed, uninterrupted)


def test_a_snapshot_holds_the_field_of_the_controller() -> None:
    session = go_on(open_session(), 1)
    model, snapshot = session.model, session.snapshot()
    ids = go_on(session, 2).state.ids
    nn.init.normal_(model.expert_bias_LE)
    nn.init.normal_(model.log_temperature_LE)
    session.restore(snapshot)
    assert not model.expert_bias_LE.any()
    assert not model.log_temperature_LE.any()
    assert go_on(session, 2).state.ids == ids


def test_a_snapshot_does_not_change_with_the_session() -> None:
    session = go_on(open_session(temperature=1.0), 1)
    snapshot = session.snapshot()
    before = (len(snapshot.ids), snapshot.stream.position, snapshot.meter.clocks.centroid_JX.copy(), snapshot.rho)
    counts, random = snapshot.meter.transitions.counts_BB.copy(), snapshot.generator.get_state()
    go_on(session, 3)
    assert (len(snapshot.ids), snapshot.stream.position, snapshot.rho) == (before[0], before[1], before[3])
    assert np.array_equal(snapshot.meter.clocks.centroid_JX, before[2])
    assert np.array_equal(snapshot.meter.transitions.counts_BB, counts)
    assert torch.equal(snapshot.generator.get_state(), random)


def test_a_session_takes_nothing_from_the_global_random_numbers() -> None:
    torch.manual_seed(1)
    one = go_on(open_session(temperature=1.0), 2).state.ids
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert go_on(open_session(temperature=1.0), 2).state.ids == one
    torch.manual_seed(1)
    go_on(open_session(temperature=1.0), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_files_of_something_else_are_refused_in_one_line(tmp_path: Path) -> None:
    session = go_on(open_session(), 1)
    session.save(tmp_path / "session.pt")
    model, calibration = calibrated("mixtral")
    with pytest.raises(InputError, match="there is no such file"):
        session.load(tmp_path / "none.pt")
    with pytest.raises(InputError, match="saved with another temperature: use temperature=0"):
        Session(model, calibration, SessionSettings(chunk_tokens=10, temperature=1.0)).load(tmp_path / "session.pt")
    other_model, other_calibration = calibrated("deepseek")
    with pytest.raises(InputError, match="another calibration"):
        Session(other_model, other_calibration, session.settings).load(tmp_path / "session.pt")
    whole = (tmp_path / "session.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"calibration": calibration.digest}, tmp_path / "empty.pt")
    ids = list(session.state.ids)
    for name in ("cut.pt", "empty.pt"):
        with pytest.raises(InputError, match="no saved session"):
            session.load(tmp_path / name)
    assert session.state.ids == ids, "what was refused has changed nothing"


def test_beginning_again_forgets_everything() -> None:
    session = open_session(temperature=1.0)
    go_on(session, 2)
    session.begin(made_text(40, seed=7))
    assert same(go_on(session, 2), go_on(open_session(temperature=1.0), 2))
