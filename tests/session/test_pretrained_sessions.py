"""A session asks nothing of a native model that a loaded one behind the adapter does not offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from session_models import VOCABULARY, go_on, made_text

from chronomoe.session.calibration import calibrate
from chronomoe.session.session import Session
from chronomoe.session.settings import SessionSettings
from chronomoe.session.telemetry import replay

pytest.importorskip("transformers")
steered = pytest.importorskip("chronomoe.pretrained.steered")

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "DeepseekV3": {
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}


def loaded(family: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family]))
    base = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter += 0.15 * torch.randn_like(parameter)
    return steered.SteeredModel(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_measured_saved_and_come_back_to_like_a_native_one(family: str, tmp_path: Path) -> None:
    model = loaded(family)
    calibration = calibrate(model, made_text(2000), block_tokens=256, least_tokens=2000)
    session = Session(model, calibration, SessionSettings(temperature=1.0, chunk_tokens=10))
    session.begin(made_text(40, seed=7))
    go_on(session, 2)
    snapshot = session.snapshot()
    session.save(tmp_path / "session.pt")
    expected = go_on(session, 3).state.chunks
    session.restore(snapshot)
    session.insert([1, 2])
    assert go_on(session, 1).state.chunks[2] != expected[2]
    session.restore(snapshot)
    assert go_on(session, 3).state.chunks == expected
    session.load(tmp_path / "session.pt")
    assert go_on(session, 3).state.chunks == expected
    for pressures, chunk in zip(replay(session.telemetry()), expected, strict=True):
        assert pressures.P_net == pytest.approx(chunk.P_net, abs=1e-12)
