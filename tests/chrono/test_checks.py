"""Control settings that cannot work are refused in one line: the key, the fault, the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from chronomoe.chrono.checks import check_decoding
from chronomoe.settings import InputError

PRICED = ["quantile", "bip", "sinkhorn"]
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "dense": (["model.dense=true", "chrono=sign"], ["chrono.law=sign", "dense", "chrono=off"]),
    "law by hand": (["chrono=sign", "chrono.law=smebu"], ["chrono.law=smebu", "set by the law's file", "chrono=off|"]),
    "no such law": (["chrono=sign", "chrono.law=gone"], ["chrono.law=gone", "chrono=off|"]),
    "late start": (
        ["chrono=sign", "chrono.start_step=8"],
        ["chrono.start_step=8", "past the run's end", "lower it below trainer.max_steps"],
    ),
    "late start of a pressure": (["chrono.start_step=9"], ["chrono.start_step=9", "trainer.max_steps"]),
    **{
        f"logits under {law}": (
            [f"chrono={law}", "chrono.actuation=logits"],
            ["chrono.actuation=logits", law, "use chrono.actuation=selection"],
        )
        for law in PRICED
    },
    **{
        f"all experts under {law}": (
            [f"chrono={law}", "router.top_k=4"],
            ["router.top_k=4", "all experts", f"chrono={law}", "lower router.top_k or use chrono=off"],
        )
        for law in PRICED
    },
    **{
        f"few tokens under {law}": (
            [f"chrono={law}", "data.seq_len=8", "data.batch_size=2"],
            [f"chrono={law}", "at least 20 tokens", "there are 16", "raise data.batch_size or data.seq_len"],
        )
        for law in PRICED
    },
    "few tokens in a micro-batch": (
        ["chrono=quantile", "data.seq_len=8", "trainer.accumulate_grad_batches=2"],
        ["at least 20 tokens in a micro-batch", "there are 16"],
    ),
    "histogram of logits": (
        ["chrono=quantile", "chrono.form=histogram"],
        ["chrono.form=histogram", "router.gate=topk_softmax", "router.gate=sigmoid", "chrono.form=exact"],
    ),
    "layer scales": (["chrono.layer_scales=[1,1,1]"], ["chrono.layer_scales", "3 entries for 2 layers", "one each"]),
    "negative layer scale": (["chrono.layer_scales=[1,-1]"], ["chrono.layer_scales=[1.0, -1.0]", "at least 0"]),
    "no memory": (["chrono.half_life_steps=0"], ["chrono.half_life_steps=0", "a positive number, or null"]),
    "alignment of one layer": (
        ["chrono.coherence=alignment", "model.num_layers=1"],
        ["chrono.coherence=alignment", "there is one", "chrono.coherence=entropy"],
    ),
    "phi of one expert per token": (
        ["chrono.coherence=phi", "router.top_k=1"],
        ["chrono.coherence=phi", "router.top_k=1", "chrono.coherence=entropy"],
    ),
    "no trace": (["chrono=replay"], ["chrono.trace must be given"]),
    "negative rate": (["chrono=sign", "chrono.rate=-1"], ["chrono.rate=-1", "the least is 0"]),
    "momentum": (["chrono=smebu", "chrono.momentum=1.5"], ["chrono.momentum=1.5", "the most is 1"]),
    "endless average": (["chrono=quantile", "chrono.ema=1"], ["chrono.ema=1", "the most is 0.999"]),
}


@pytest.mark.parametrize(("overrides", "fragments"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_work_is_refused_with_key_fault_and_way_out(
    configure: Callable[..., Any], overrides: list[str], fragments: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        configure(*overrides)
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["chrono=quantile", "data.seq_len=10", "data.batch_size=2"],
        ["chrono=quantile", "chrono.form=histogram", "router.gate=sigmoid"],
        ["chrono=quantile", "chrono.form=histogram", "router.gate=softmax"],
        ["chrono=sign", "chrono.start_step=7"],
        ["chrono=sign", "chrono.actuation=logits"],
        ["chrono=off", "model.dense=true"],
        ["chrono.half_life_steps=null", "chrono.layer_scales=[0,2]"],
    ],
    ids=" ".join,
)
def test_the_ways_out_and_the_limits_themselves_are_accepted(
    configure: Callable[..., Any], overrides: list[str]
) -> None:
    configure(*overrides)


def test_decoding_is_refused_only_where_evaluation_needs_a_batch(configure: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"chrono\.evaluation=batch .* train with chrono\.evaluation=frozen"):
        check_decoding(configure("chrono=bip", "chrono.evaluation=batch").chrono)
    for law in ("bip", "sinkhorn", "quantile", "chronovisor"):
        check_decoding(configure(f"chrono={law}").chrono)
