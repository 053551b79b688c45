"""What was recorded survives the disk, and gives the pressures back."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from session_models import FAMILIES, go_on, open_session

from chronomoe.session.session import Session
from chronomoe.session.telemetry import Telemetry, read_telemetry, replay
from chronomoe.session.token_record import columns_of, records_of
from chronomoe.settings import InputError

VARIANTS: dict[str, dict] = {
    "measured": {},
    "sampled": {"temperature": 1.0},
    "last token": {"aggregate": "last_token", "entropy_scale": "raw_half"},
    "routing, carried": {"q_source": "routing", "rho_rule": "carry"},
    "no constraints": {"constraints": ["none"]},
    "documented": {"signals": "documented", "mode": "single_turn"},
}


def recorded(family: str = "mixtral", **settings: object) -> Session:
    session = go_on(open_session(family, **settings), 3)
    session.insert([1, 2, 3])
    return go_on(session, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_pressures_come_back_from_the_recorded_tokens(family: str, settings: dict, tmp_path: Path) -> None:
    telemetry = recorded(family, **settings).telemetry()
    telemetry.write(tmp_path / "telemetry.pt")
    for pressures, chunk in zip(replay(read_telemetry(tmp_path / "telemetry.pt")), telemetry.chunks, strict=True):
        for name, value in pressures._asdict().items():
            assert value == pytest.approx(getattr(chunk, name), abs=1e-12)


def test_telemetry_survives_the_disk(tmp_path: Path) -> None:
    telemetry = recorded().telemetry()
    telemetry.write(tmp_path / "telemetry.pt")
    found = read_telemetry(tmp_path / "telemetry.pt")
    assert found.about == telemetry.about
    assert found.chunks == telemetry.chunks
    assert all(np.array_equal(found.tokens[name], column, equal_nan=True) for name, column in telemetry.tokens.items())


def test_records_survive_being_columns() -> None:
    records = recorded().state.tokens
    again = columns_of(records_of(columns_of(records)))
    assert all(np.array_equal(again[name], column, equal_nan=True) for name, column in columns_of(records).items())


def test_rows_and_settings_are_strict_json() -> None:
    telemetry = recorded().telemetry()
    text = json.dumps([telemetry.about, *[chunk.row() for chunk in telemetry.chunks]], allow_nan=False)
    row = json.loads(text)[1]
    for name in (
        "P_fast",
        "P_mid",
        "P_slow",
        "w_fast",
        "w_mid",
        "w_slow",
        "P_net",
        "rho",
        "should_pause",
        "pause_reason",
    ):
        assert name in row
    for name in ("Hn", "m_r", "m", "C", "d_meso", "d_macro", "q", "J", "c_f", "c_s", "v"):
        assert {f"{name}_mean", f"{name}_last"} <= row.keys()
    assert {"H_use", "information", "dC", "distinct4", "degenerate"} <= row.keys()


def test_only_what_is_not_defined_yet_is_no_number() -> None:
    tokens = recorded().telemetry().tokens
    for name, column in tokens.items():
        undefined = {"d_meso": 31, "d_macro": 31, "c_f": 31, "c_m": 31, "c_s": 31, "v": 31}
        undefined |= dict.fromkeys(("repetition", "surprise", "saturation"), 19)
        undefined |= dict.fromkeys(("q", "J", "x_fast", "x_mid", "x_slow"), 1)
        assert np.isnan(column.astype(float)).reshape(len(column), -1).any(axis=1).sum() == undefined.get(name, 0), name


def test_a_files_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no telemetry"):
        read_telemetry(tmp_path / "broken.pt")
    with pytest.raises(InputError, match="no such file"):
        read_telemetry(tmp_path / "none.pt")


def test_a_changed_token_changes_the_replay() -> None:
    telemetry = recorded().telemetry()
    changed = Telemetry(telemetry.about, telemetry.tokens | {"m": telemetry.tokens["m"] * 0.5}, telemetry.chunks)
    assert asdict(telemetry.chunks[0])["P_mid"] != replay(changed)[0].P_mid
