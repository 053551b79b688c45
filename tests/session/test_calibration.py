"""A calibration is what its text looks like, belongs to one model's weights, and survives the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from session_models import FAMILIES, build, calibrated, made_text

from chronomoe.session.calibration import calibrate, load_calibration, look_at_block, measure_blocks, weights_of
from chronomoe.session.clock_heads import signature
from chronomoe.session.constraints import CONSTRAINTS, chosen, penalty, threshold_of
from chronomoe.session.reading import read
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.settings import InputError


def test_means_are_those_of_the_blocks_without_their_first_tokens() -> None:
    model, calibration = calibrated("mixtral")
    text = made_text(3000)
    readings = [read(model, text[i : i + 256], model.new_state(1)) for i in range(0, 3000, 256)]
    hidden = np.concatenate([reading.hidden_SD[1:] for reading in readings])
    signatures = np.concatenate([signature(reading.probabilities_SLE)[1:] for reading in readings])
    np.testing.assert_allclose(calibration.mean_hidden_D, hidden.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(calibration.mean_signature_U, signatures.mean(axis=0), atol=1e-6)
    assert calibration.num_tokens == 3000


@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_leave_one_token_in_a_hundred_above(family: str) -> None:
    model, calibration = calibrated(family)
    text = made_text(3000)
    looks = [look_at_block(model, text[start : start + 256]) for start in range(0, 3000, 256)]
    columns = measure_blocks(looks, calibration.frame, model.settings.num_experts)
    assert set(calibration.thresholds) == set(CONSTRAINTS)
    for name, (theta, sd) in calibration.thresholds.items():
        assert 0.004 < (columns[name] > theta).mean() < 0.011, name
        assert sd == pytest.approx(columns[name].std())
    for name, (mean, sd) in calibration.signals.items():
        assert (mean, sd) == pytest.approx((columns[name].mean(), columns[name].std())), name


def test_penalty_counts_standard_deviations_above_the_threshold() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 50_000)
    theta, sd = threshold_of(values)
    assert theta == pytest.approx(2.0 + 2.326 * 3.0, rel=0.02)
    thresholds = {"surprise": threshold_of(values), "d_macro": threshold_of(values)}
    seen = {"surprise": np.array([theta - 5, theta + sd]), "d_macro": np.array([theta, theta + 2 * sd])}
    assert penalty(seen, thresholds) == pytest.approx([0.0, 3.0])
    alone = {"surprise": thresholds["surprise"]}
    assert penalty(seen, alone) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("names", [["surprize"], [], ["surprise", "surprise"], ["none", "surprise"]], ids=str)
def test_constraints_that_do_not_exist_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError, match="constraints="):
        chosen(names)


def test_same_text_same_calibration_and_another_text_another_one() -> None:
    model = build("mixtral")
    one, two, other = (
        calibrate(model, made_text(600, seed), block_tokens=128, least_tokens=600).digest for seed in (0, 0, 1)
    )
    assert one == two != other


def test_a_calibration_survives_the_disk(tmp_path: Path) -> None:
    _, calibration = calibrated("mixtral")
    calibration.save(tmp_path / "calibration.pt")
    loaded = load_calibration(tmp_path / "calibration.pt")
    assert loaded.digest == calibration.digest
    assert np.array_equal(loaded.centre_BX, calibration.centre_BX)
    assert loaded.thresholds_of(["surprise"]) == calibration.thresholds_of(["surprise"])


def test_a_file_that_is_no_calibration_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_calibration(tmp_path / "none.pt")
    for content in (b"text", b""):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(InputError, match="truncated, or no calibration"):
            load_calibration(tmp_path / "broken.pt")
    torch.save({"text": "x"}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="no calibration"):
        load_calibration(tmp_path / "other.pt")


def test_another_models_calibration_is_refused_and_another_fields_is_not() -> None:
    model, calibration = calibrated("mixtral")
    steered = build("mixtral")
    with torch.no_grad():
        steered.expert_bias_LE += 1.0
    assert weights_of(steered) == weights_of(model)
    Session(steered, calibration, SessionSettings())
    with pytest.raises(InputError, match="other weights"):
        Session(build("mixtral", seed=5), calibration, SessionSettings())


@pytest.mark.parametrize("name", ["Hn", "m_r", "m", "q", "d_meso", "d_macro", "c_s"])
def test_a_signal_that_stood_still_on_the_text_is_refused_by_name(name: str) -> None:
    model, calibration = calibrated("mixtral")
    still = replace(calibration, signals=calibration.signals | {name: [0.5, 0.0]})
    with pytest.raises(InputError, match=f"signal {name} is the same at every token"):
        Session(model, still, SessionSettings())


def test_a_router_that_knows_nothing_is_refused_by_name() -> None:
    model = build("mixtral")
    with torch.no_grad():
        for block in model.blocks:
            block.ffn.router.gate.weight.zero_()
    calibration = calibrate(model, made_text(600), block_tokens=128, least_tokens=600)
    with pytest.raises(InputError, match="signal Hn is the same"):
        Session(model, calibration, SessionSettings(constraints=["none"]))


def test_a_constraint_that_never_moved_is_refused_unless_it_is_left_out() -> None:
    model, calibration = calibrated("mixtral")
    still = replace(calibration, thresholds=calibration.thresholds | {"repetition": [0.0, 0.0]})
    with pytest.raises(InputError, match="signal repetition"):
        Session(model, still, SessionSettings())
    Session(model, still, SessionSettings(constraints=["surprise"]))


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(InputError, match="has 100 tokens in blocks of 512: give at least 50000"):
        calibrate(build("mixtral"), made_text(100))


def test_a_look_holds_one_text_signal_fewer_than_tokens_at_the_start_of_a_text() -> None:
    seen = look_at_block(build("mixtral"), made_text(70))
    assert (len(seen.ids_S), len(seen.text.surprisal), len(seen.H_SL)) == (70, 69, 70)
