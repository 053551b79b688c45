"""The two controls: a recorded field played again, and one that only moves like it.

Axes: N recorded steps, L MoE layers, E experts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_runs import Finished, differences

from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.chrono.laws.replay import field_at, read_trace
from chronomoe.chrono.laws.sham import random_rotation
from chronomoe.chrono.observation import Observation
from chronomoe.settings import InputError, Stopped
from chronomoe.training.telemetry import Telemetry

LAYERS, EXPERTS, STEPS = 3, 6, 10
Fields = Callable[..., Tensor]


@pytest.fixture
def fields(
    recorded_run: Callable[..., Path],
    law_settings: Callable[..., ChronoSettings],
    random_observations: Callable[..., list[Observation]],
) -> Fields:
    """fields(law, seed=0): bias and log-temperature at each of the recorded steps, [2, N, L, E], in fp64."""
    trace = str(recorded_run(LAYERS, EXPERTS))

    def fields(law: str, seed: int = 0) -> Tensor:
        controller = Chronovisor(law_settings(law, trace=trace), LAYERS, EXPERTS, seed)
        made = [controller.tick(observation) for observation in random_observations(STEPS)]
        return torch.stack([torch.stack(list(field)) for field in made], dim=1).double()

    return fields


def test_a_replay_with_the_runs_own_seed_is_that_run_bit_for_bit(train: Callable[..., Finished]) -> None:
    recorded = train("chrono=chronovisor", into="recorded")
    replayed = train("chrono=replay", f"chrono.trace={recorded.directory}", into="replayed")
    for name in ("step", "bias", "log_temperature", "tokens_per_expert"):
        np.testing.assert_array_equal(replayed.routing[name], recorded.routing[name], err_msg=name)
    assert recorded.routing["bias"].any()
    assert differences(replayed.checkpoint()["state_dict"], recorded.checkpoint()["state_dict"]) == []
    assert replayed.column("train/loss") == recorded.column("train/loss")


def test_a_replay_without_feedback_does_not_follow_this_runs_load(train: Callable[..., Finished]) -> None:
    recorded = train("chrono=chronovisor", into="recorded")
    other = train("chrono=replay", f"chrono.trace={recorded.directory}", "seed=1", into="other")
    np.testing.assert_array_equal(other.routing["bias"], recorded.routing["bias"])
    assert (other.routing["tokens_per_expert"] != recorded.routing["tokens_per_expert"]).any()


@pytest.mark.parametrize("law", ["replay", "sham"])
def test_a_stopped_and_resumed_control_is_the_whole_one(
    train: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, law: str
) -> None:
    recorded = train("chrono=chronovisor", into="recorded")
    overrides = (f"chrono={law}", f"chrono.trace={recorded.directory}")
    whole = train(*overrides, into="whole")
    log_row = Telemetry._log_row

    def stop_at_three(self: Telemetry, trainer: Any, module: Any, step: int) -> None:
        log_row(self, trainer, module, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Telemetry, "_log_row", stop_at_three)
        with pytest.raises(Stopped):
            train(*overrides, "trainer.log_every_steps=1", into="stopped")
    resumed = train(*overrides, "ckpt_path=last", into="stopped")
    assert differences(resumed.checkpoint()["state_dict"], whole.checkpoint()["state_dict"]) == []
    assert differences(resumed.controller, whole.controller) == []


def test_a_field_is_neutral_before_the_record_and_held_between_and_after_its_steps() -> None:
    bias_NLE = torch.arange(1.0, 4.0)[:, None, None].expand(3, 2, 4)
    state = {"step_N": torch.tensor([4, 8, 12]), "bias_NLE": bias_NLE, "log_temperature_NLE": -bias_NLE}
    for step, value in [(1, 0.0), (3, 0.0), (4, 1.0), (7, 1.0), (8, 2.0), (11, 2.0), (12, 3.0), (500, 3.0)]:
        expected_LE = torch.full((2, 4), value)
        bias_LE, log_temperature_LE = field_at(state, step)
        assert torch.equal(bias_LE, expected_LE), step
        assert torch.equal(log_temperature_LE, -expected_LE), step


def test_a_replayed_field_is_the_recorded_one(fields: Fields, recorded_run: Callable[..., Path]) -> None:
    with np.load(recorded_run(LAYERS, EXPERTS) / "routing.npz") as arrays:
        recorded = torch.stack([torch.from_numpy(arrays[name]) for name in ("bias", "log_temperature")])
    assert torch.equal(fields("replay"), recorded.double())


BROKEN = ["missing", "empty", "text", "cut", "flipped", "array", "other"]


def write_broken(folder: Path, name: str) -> None:
    """A `routing.npz` that is none."""
    path, bias_NLE = folder / "routing.npz", np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    np.savez_compressed(path, step=np.arange(3), bias=bias_NLE, log_temperature=bias_NLE)
    whole = path.read_bytes()
    if name == "missing":
        path.unlink()
    elif name == "array":
        np.save(folder / "routing.npy", bias_NLE)
        (folder / "routing.npy").rename(path)
    elif name == "other":
        np.savez(path, step=np.arange(3))
    else:
        flipped = bytes(byte ^ (40 < place < 400) for place, byte in enumerate(whole))
        path.write_bytes({"empty": b"", "text": b"step,bias", "cut": whole[:400], "flipped": flipped}[name])


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write_broken(tmp_path, name)
    with pytest.raises(
        InputError, match=r"chrono.trace=.*no routing.npz to read there; give the folder of a run"
    ) as error:
        read_trace(str(tmp_path), 2, 4)
    assert "\n" not in str(error.value)


def test_a_record_of_another_shape_is_refused_with_both_shapes(recorded_run: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"chrono.trace=.* holds 3x6 layers x experts, the model has 2x8: give a run"):
        read_trace(str(recorded_run(3, 6)), 2, 8)


@pytest.mark.parametrize("experts", [2, 3, 8])
def test_a_rotation_is_orthogonal_and_leaves_the_ones_where_they_are(experts: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        rotation_EE = random_rotation(experts, generator)
        torch.testing.assert_close(rotation_EE @ rotation_EE.T, torch.eye(experts))
        torch.testing.assert_close(rotation_EE @ torch.ones(experts), torch.ones(experts))


def test_rotations_are_uniform() -> None:
    """Any centred direction goes to every centred direction alike: mean 0, covariance (1 - 1/E)/(E - 1)."""
    generator, direction_E = torch.Generator().manual_seed(0), torch.tensor([1.0, -1.0, 0.0, 0.0]) / 2**0.5
    images = torch.stack([random_rotation(4, generator) @ direction_E for _ in range(4000)])
    centring_EE = torch.eye(4) - 0.25
    torch.testing.assert_close(images.mean(dim=0), torch.zeros(4), rtol=0, atol=0.03)
    torch.testing.assert_close(images.T @ images / 4000, centring_EE / 3, rtol=0, atol=0.03)
    assert (images**4).mean(dim=0).sub(0.1125).abs().max() < 0.01  # on the sphere of 3 dimensions: 3/15 (3/4)^2


@pytest.mark.parametrize("part", [0, 1], ids=["bias", "log_temperature"])
def test_a_sham_keeps_norms_means_and_how_the_field_changes_over_time(fields: Fields, part: int) -> None:
    recorded_NLE, sham_NLE = fields("replay")[part], fields("sham")[part]
    torch.testing.assert_close(sham_NLE.mean(dim=-1), recorded_NLE.mean(dim=-1), rtol=0, atol=1e-5)
    recorded_LNN, sham_LNN = (torch.einsum("nle,mle->lnm", x, x) for x in (recorded_NLE, sham_NLE))
    torch.testing.assert_close(sham_LNN, recorded_LNN, rtol=1e-4, atol=1e-4)  # norms are its diagonal
    assert (sham_NLE - recorded_NLE).norm(dim=-1).min() > 0.1 * recorded_NLE.norm(dim=-1).min()


def test_a_shams_direction_knows_nothing_of_the_recorded_one(fields: Fields) -> None:
    recorded_LE = fields("replay")[0, -1]
    shams = [fields("sham", seed)[0, -1] for seed in range(200)]
    cosines = torch.stack([torch.cosine_similarity(sham_LE, recorded_LE, dim=-1) for sham_LE in shams])
    assert cosines.mean().abs() < 0.06
    assert cosines.std().item() == pytest.approx((1 / (EXPERTS - 1)) ** 0.5, rel=0.1)


def test_a_sham_is_drawn_from_the_seed_and_for_each_layer_anew(
    fields: Fields, law_settings: Callable[..., ChronoSettings], observe: Callable[..., Observation], tmp_path: Path
) -> None:
    assert torch.equal(fields("sham", 3), fields("sham", 3))
    assert not torch.allclose(fields("sham", 3), fields("sham", 4))
    alike_NLE = np.float32([[[1, 0, -1, 0]] * 2])
    np.savez(tmp_path / "routing.npz", step=np.array([1]), bias=alike_NLE, log_temperature=alike_NLE)
    controller = Chronovisor(law_settings("sham", trace=str(tmp_path)), 2, 4)
    bias_LE, log_temperature_LE = controller.tick(observe(torch.ones(2, 4, dtype=torch.int64)))
    assert not torch.allclose(bias_LE[0], bias_LE[1])
    torch.testing.assert_close(log_temperature_LE, bias_LE)  # one rotation turns a layer's whole field
