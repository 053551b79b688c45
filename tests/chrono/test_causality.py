"""Does a law let a token change what was computed before it? All but the in-batch solvers, which must be caught.

Axes: B batch, S sequence, V vocabulary, L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chronomoe.chrono.callback import ChronovisorCallback
from chronomoe.chrono.controller import Chronovisor
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.model.lm import LanguageModel

LENGTH, LEAK, ROUNDING = 20, 1e-2, 1e-5
NOT_CAUSAL = {"bip", "sinkhorn"}
Watch = Callable[..., list[float]]


@pytest.fixture
def leaks(
    tiny_model: Callable[..., LanguageModel],
    draw_ids: Callable[..., Tensor],
    law_settings: Callable[..., ChronoSettings],
    recorded_run: Callable[..., Path],
    tmp_path: Path,
) -> Watch:
    """leaks(law, train): for every position but the first, how far the logits before it move when its token changes,
    under a law that has been steering for four steps."""

    def leaks(law: str, train: bool, **overrides: object) -> list[float]:
        if law in ("replay", "sham"):
            overrides["trace"] = str(recorded_run(2, 4))
        model = tiny_model().train()
        controller = Chronovisor(law_settings(law, **overrides), 2, 4)
        callback = ChronovisorCallback(controller, model, max_steps=4, record_path=tmp_path / "routing.npz")
        ids_BS = draw_ids(1, LENGTH)
        with torch.no_grad():
            for seed in range(4):
                model(draw_ids(4, LENGTH, seed=seed))
                callback.on_before_optimizer_step(None, None, None)  # type: ignore[arg-type]
            model.train(train)
            before_BSV = model(ids_BS).logits_BSV
            moved = []
            for changed in range(1, LENGTH):
                other_BS = ids_BS.clone()
                other_BS[0, changed] = (other_BS[0, changed] + 1) % 32
                after_BSV = model(other_BS).logits_BSV
                assert not torch.equal(after_BSV[:, changed], before_BSV[:, changed])
                moved.append(float((after_BSV - before_BSV)[:, :changed].abs().max()))
        return moved

    return leaks


@pytest.mark.parametrize("law", [law for law in LAWS if law not in NOT_CAUSAL])
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_a_token_leaves_every_logit_before_it_alone(leaks: Watch, law: str, train: bool) -> None:
    assert max(leaks(law, train)) < ROUNDING


@pytest.mark.parametrize("law", sorted(NOT_CAUSAL))
def test_the_same_check_catches_an_in_batch_solver_in_training_only(leaks: Watch, law: str) -> None:
    assert sum(leak > LEAK for leak in leaks(law, True)) > LENGTH // 2
    assert max(leaks(law, False)) < ROUNDING


def test_bip_that_solves_each_evaluated_batch_leaks_there_too(leaks: Watch) -> None:
    assert sum(leak > LEAK for leak in leaks("bip", False, evaluation="batch")) > LENGTH // 2


@pytest.mark.parametrize("law", LAWS)
def test_whoever_solves_within_a_batch_is_known(law: str, law_settings: Callable[..., ChronoSettings]) -> None:
    assert (LAWS[law].balancer(law_settings(law)) is not None) == (law in NOT_CAUSAL)
