"""The routing record: how much it keeps, which steps, and what survives a stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chronomoe.chrono import record as record_module
from chronomoe.chrono.laws.law import Field, Signals
from chronomoe.chrono.record import RoutingRecord

CAPACITY = 8


@pytest.fixture(autouse=True)
def small_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "CAPACITY", CAPACITY)


def append(record: RoutingRecord, step: int) -> None:
    """A step whose every number tells which step it is."""
    counts_LE = torch.arange(6).view(2, 3) + 10 * step
    signals: Signals = {
        "pressure_LE": counts_LE + 0.1,
        "lens_LE": counts_LE + 0.2,
        "coherence_L": torch.tensor([0.1, 0.2]) * step,
        "gate_L": torch.zeros(2),
    }
    record.append(step, counts_LE, Field(counts_LE + 0.3, counts_LE + 0.4), signals)


def record_steps(first: int, last: int, record: RoutingRecord | None = None) -> RoutingRecord:
    record = record or RoutingRecord()
    for step in range(first, last + 1):
        append(record, step)
    return record


def saved_arrays(record: RoutingRecord, path: Path) -> dict[str, np.ndarray]:
    record.save(path)
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@given(last=st.integers(1, 200))
def test_a_record_never_outgrows_its_capacity_and_keeps_every_stride_th_step(last: int) -> None:
    record = record_steps(1, last)
    assert len(record.steps) == len(record.rows) <= record_module.CAPACITY
    assert record.steps == list(range(record.stride, last + 1, record.stride))
    assert len(record.steps) >= record_module.CAPACITY // 2 or record.stride == 1


def test_a_row_belongs_to_its_step() -> None:
    record = record_steps(1, 100)
    for step, row in zip(record.steps, record.rows, strict=True):
        assert row["tokens_per_expert"][0, 0] == 10 * step
        torch.testing.assert_close(row["coherence"], torch.tensor([0.1, 0.2]) * step)


def test_a_saved_record_holds_every_series_by_name(tmp_path: Path) -> None:
    arrays = saved_arrays(record_steps(1, 5), tmp_path / "routing.npz")
    expected = {"step", "stride", "tokens_per_expert", "bias", "log_temperature", "coherence", "pressure", "lens"}
    assert arrays.keys() == expected
    assert arrays["step"].tolist() == [1, 2, 3, 4, 5]
    for name, offset in (("pressure", 0.1), ("lens", 0.2), ("bias", 0.3), ("log_temperature", 0.4)):
        assert arrays[name].shape == (5, 2, 3)
        np.testing.assert_allclose(arrays[name], arrays["tokens_per_expert"] + offset, rtol=1e-6)


def test_a_law_without_signals_leaves_zeros_and_no_reading_of_coherence(tmp_path: Path) -> None:
    record = RoutingRecord()
    record.append(1, torch.ones(2, 3), Field(torch.ones(2, 3), torch.ones(2, 3)), {})
    arrays = saved_arrays(record, tmp_path / "routing.npz")
    assert not arrays["pressure"].any()
    assert not arrays["lens"].any()
    assert np.isnan(arrays["coherence"]).all()  # nobody read it: that is no measurement of zero
    assert arrays["coherence"].shape == (1, 2)


@pytest.mark.parametrize("stopped_at", [1, 7, 8, 9, 20, 33, 64])
def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path: Path, stopped_at: int) -> None:
    path = tmp_path / "routing.npz"
    record_steps(1, stopped_at).save(path)
    resumed = record_steps(stopped_at + 1, 70, RoutingRecord.load(path, last_step=stopped_at))
    ours, whole = saved_arrays(resumed, path), saved_arrays(record_steps(1, 70), tmp_path / "whole.npz")
    for name, values in whole.items():
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


def test_steps_recorded_after_the_checkpoint_are_recorded_anew(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    record_steps(1, 40).save(path)  # written at step 40, but the checkpoint is of step 36
    resumed = record_steps(37, 70, RoutingRecord.load(path, last_step=36))
    assert resumed.steps == record_steps(1, 70).steps


def test_a_fresh_run_ignores_the_stride_of_an_older_record(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    record_steps(1, 100).save(path)
    fresh = record_steps(1, 5, RoutingRecord.load(path, last_step=0))
    assert fresh.steps == [1, 2, 3, 4, 5]


def test_there_is_no_file_before_the_first_row_and_no_record_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "routing.npz"
    RoutingRecord().save(path)
    assert not path.exists()
    assert RoutingRecord.load(path, last_step=10).steps == []


def test_an_interrupted_save_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "routing.npz"
    before = saved_arrays(record_steps(1, 3), path)

    def die_halfway(target: Path, **arguments: object) -> None:
        Path(target).write_bytes(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", die_halfway)
        with pytest.raises(OSError, match="No space"):
            record_steps(1, 5).save(path)
    with np.load(path) as arrays:
        assert all(np.array_equal(arrays[name], values) for name, values in before.items())
    assert saved_arrays(record_steps(1, 5), path)["step"].tolist() == [1, 2, 3, 4, 5]
