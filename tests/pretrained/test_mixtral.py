"""The same weights in transformers' Mixtral compute the same logits and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.model.lm import LanguageModel
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.pretrained.mixtral import from_mixtral, mixtral_config, to_mixtral

if TYPE_CHECKING:
    from transformers import MixtralForCausalLM

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")

MakeModel = Callable[..., LanguageModel]
MakeIds = Callable[..., Tensor]
SHAPES = {
    "grouped heads": {},
    "full heads, tied": {"num_kv_heads": 4, "tie_embeddings": True},
    "one kv head, one layer": {"num_kv_heads": 1, "num_layers": 1, "num_heads": 2},
    "8 experts, top-3, long waves": {"num_experts": 8, "top_k": 3, "rope_theta": 1e6},
    "top-1, coarse norm": {"top_k": 1, "norm_eps": 1e-2},
}
PADDING = {
    "no padding": [[1] * 11] * 3,
    "left": [[0] * 4 + [1] * 7, [1] * 11, [0] * 10 + [1]],
    "right": [[1] * 7 + [0] * 4, [1] * 11, [1] + [0] * 10],
}
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def twin(model: LanguageModel, top_k: int) -> MixtralForCausalLM:
    """transformers' model with our weights."""
    from transformers import MixtralForCausalLM

    theirs = MixtralForCausalLM(mixtral_config(model.settings, RouterSettings(kind="mixtral", top_k=top_k))).eval()
    missing, unexpected = theirs.load_state_dict(to_mixtral(model.state_dict(), model.settings), strict=False)
    assert not missing
    assert not unexpected
    return theirs


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@by_shape
@pytest.mark.parametrize("padding", PADDING.values(), ids=PADDING.keys())
def test_logits_and_gradients_agree_with_transformers(
    tiny_model: MakeModel, draw_ids: MakeIds, shape: dict[str, object], padding: list[list[int]]
) -> None:
    model = tiny_model(**shape)
    theirs = twin(model, shape.get("top_k", 2))
    ids_BS, targets_BS, real_BS = draw_ids(3, 11), draw_ids(3, 11, seed=2), torch.tensor(padding).bool()
    our_logits = model(ids_BS, real_BC=None if real_BS.all() else real_BS).logits_BSV[real_BS]
    their_logits = theirs(ids_BS, attention_mask=real_BS.long()).logits[real_BS]
    assert relative_error(our_logits, their_logits) < 1e-5

    for logits in (our_logits, their_logits):
        cross_entropy(logits, targets_BS[real_BS]).backward()
    our_gradients = to_mixtral({name: weight.grad for name, weight in model.named_parameters()}, model.settings)
    their_gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        if shape.get("top_k") == 1 and name.endswith("mlp.gate.weight"):
            # The softmax over one logit is 1 whatever the logit: the gate has no gradient, only rounding.
            assert max(our_gradients[name].abs().max(), gradient.abs().max()) < 1e-7, name
            continue
        assert relative_error(our_gradients[name], gradient) < 1e-5, name


@by_shape
def test_conversion_there_and_back_is_the_identity(tiny_model: MakeModel, shape: dict[str, object]) -> None:
    model = tiny_model(**shape)
    state = {name: weight for name, weight in model.state_dict().items() if not name.endswith("_LE")}
    back = from_mixtral(to_mixtral(state, model.settings), model.settings)
    assert back.keys() == state.keys()
    for name, weight in state.items():
        assert torch.equal(back[name], weight), name


def test_weights_of_transformers_load_into_ours(tiny_settings: Callable[..., ModelSettings], draw_ids: MakeIds) -> None:
    from transformers import MixtralForCausalLM

    settings, router = tiny_settings(), RouterSettings(kind="mixtral", top_k=2)
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(mixtral_config(settings, router)).eval()
    model = LanguageModel(settings, router).eval()
    missing, unexpected = model.load_state_dict(from_mixtral(theirs.state_dict(), settings), strict=False)
    assert set(missing) == {"expert_bias_LE", "log_temperature_LE"}  # a model without a controller has a neutral field
    assert not unexpected
    ids_BS = draw_ids(2, 11)
    assert relative_error(model(ids_BS).logits_BSV, theirs(ids_BS).logits) < 1e-5


def test_the_field_is_left_behind(tiny_model: MakeModel) -> None:
    model = tiny_model()
    model.expert_bias_LE.fill_(3.0)
    assert not any("bias" in name or "temperature" in name for name in to_mixtral(model.state_dict(), model.settings))


@pytest.mark.parametrize("layers", [1, 3])
def test_the_configuration_describes_the_same_architecture(
    tiny_settings: Callable[..., ModelSettings], layers: int
) -> None:
    from transformers import MixtralForCausalLM

    settings, router = tiny_settings(num_layers=layers), RouterSettings(kind="mixtral", top_k=2)
    with torch.device("meta"):
        theirs = MixtralForCausalLM(mixtral_config(settings, router))
        ours = to_mixtral(LanguageModel(settings, router).state_dict(), settings)
    assert {n: p.shape for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.items()}
