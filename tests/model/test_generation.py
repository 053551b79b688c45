"""Generation with a key-value cache against recomputing the whole sequence for every token.

Axes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chronomoe.model import dispatch
from chronomoe.model.generation import generate, sample
from chronomoe.model.lm import LanguageModel
from chronomoe.model.products import FEW_ROWS
from chronomoe.model.settings import ModelSettings, RouterSettings

MakeModel = Callable[..., LanguageModel]
MakeIds = Callable[..., Tensor]
NEW = 10
ROUTERS = {
    "mixtral": ({"kind": "mixtral"}, {}),
    "one expert": ({"kind": "mixtral", "top_k": 1}, {}),
    "three experts": ({"kind": "mixtral", "top_k": 3}, {}),
    "switch": ({"kind": "switch", "gate": "softmax", "top_k": 1}, {"activation": "relu", "hidden_dim": 23}),
    "sigmoid, shared experts": ({"kind": "mixtral", "gate": "sigmoid"}, {"num_shared_experts": 1}),
    "softmax, tied, grouped heads": ({"kind": "mixtral", "gate": "softmax"}, {"tie_embeddings": True}),
    "capacity": ({"kind": "mixtral", "capacity_factor": 0.5, "jitter": 0.1}, {}),
    "causal expert choice": ({"kind": "expert_choice", "capacity_factor": 1.5}, {}),
    "dense": ({"kind": "mixtral"}, {"dense": True}),
}
by_router = pytest.mark.parametrize(("router", "sizes"), ROUTERS.values(), ids=ROUTERS.keys())


@pytest.fixture(params=["neutral", "bias", "logits", "temperature"])
def steered(request: pytest.FixtureRequest, tiny_settings: Callable[..., ModelSettings]) -> MakeModel:
    """steered(router, sizes): a model whose field is of this kind."""

    def make(router: dict, sizes: dict) -> LanguageModel:
        torch.manual_seed(0)
        actuation = "logits" if request.param == "logits" else "selection"
        model = LanguageModel(tiny_settings(init_std=0.3, **sizes), RouterSettings(**router), actuation).eval()
        if request.param in ("bias", "logits"):
            model.expert_bias_LE.normal_(0, 0.5)
        if request.param == "temperature":
            model.log_temperature_LE.normal_(0, 0.5)
        return model

    return make


@pytest.mark.parametrize("dense", [False, True], ids=["experts", "dense"])
@torch.no_grad()
def test_cached_logits_equal_full_recomputation(tiny_model: MakeModel, draw_ids: MakeIds, dense: bool) -> None:
    model, ids_BS = tiny_model(dense=dense), draw_ids(3, 16)
    state = model.new_state(3, 16)
    pieces = [model(part_BS, state=state).logits_BSV for part_BS in ids_BS.split([5, 1, 4, 1, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BS).logits_BSV, rtol=0, atol=2e-5)


@by_router
@pytest.mark.parametrize("batch", [1, 3, FEW_ROWS, FEW_ROWS + 1])
@torch.no_grad()
def test_a_step_equals_the_full_forward_for_every_router_and_field(
    steered: Callable[[dict, dict], LanguageModel], draw_ids: MakeIds, router: dict, sizes: dict, batch: int
) -> None:
    model, ids_BS = steered(router, sizes), draw_ids(batch, 12)
    for prompt in (1, 7):
        state = model.new_state(batch, 12)
        first_BV = model(ids_BS[:, :prompt], state=state).last_logits_BV
        steps = [model(ids_BS[:, at : at + 1], state=state).last_logits_BV for at in range(prompt, 12)]
        full_BSV = model(ids_BS).logits_BSV[:, prompt - 1 :]
        torch.testing.assert_close(torch.stack([first_BV, *steps], dim=1), full_BSV, rtol=0, atol=2e-5)


@by_router
@torch.no_grad()
def test_a_step_does_what_the_general_path_does(
    steered: Callable[[dict, dict], LanguageModel], draw_ids: MakeIds, router: dict, sizes: dict
) -> None:
    model, ids_BS = steered(router, sizes), draw_ids(3, 1)
    few = model(ids_BS)
    with torch.enable_grad():  # with gradients nothing is taken as few
        general = model(ids_BS)
    torch.testing.assert_close(few.logits_BSV, general.logits_BSV, rtol=0, atol=2e-5)
    for mine, other in zip(few.routings, general.routings, strict=True):
        assert mine.topk_expert_ids_TK.tolist() == other.topk_expert_ids_TK.tolist()
        assert mine.tokens_per_expert_E.tolist() == other.tokens_per_expert_E.tolist()


@torch.no_grad()
def test_what_chose_no_expert_or_asks_for_another_kernel_takes_the_general_path(
    tiny_model: MakeModel, draw_ids: MakeIds, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids_BS = tiny_model(), draw_ids(3, 1)
    expected_BSV = model(ids_BS).logits_BSV
    for block in model.blocks:
        block.ffn.experts.kernel = "looped"
    monkeypatch.delattr(dispatch, "dispatch_few")
    torch.testing.assert_close(model(ids_BS).logits_BSV, expected_BSV, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_token_that_no_expert_takes_is_carried_on(tiny_settings: Callable[..., ModelSettings]) -> None:
    router = RouterSettings(kind="expert_choice", capacity_factor=1.0)
    model = LanguageModel(tiny_settings(), router).eval()
    model.threshold_LE.fill_(2.0)
    output = model(torch.tensor([[3]]))
    assert output.logits_BSV.isfinite().all()
    assert not any(routing.tokens_per_expert_E.any() for routing in output.routings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bf16", "fp64"])
@torch.no_grad()
def test_other_precisions_decode(tiny_model: MakeModel, draw_ids: MakeIds, dtype: torch.dtype) -> None:
    model, ids_BS = tiny_model().to(dtype), draw_ids(3, 8)
    state = model.new_state(3, 8)
    pieces = [model(part_BS, state=state).logits_BSV for part_BS in ids_BS.split([5, 1, 1, 1], dim=1)]
    tolerance = 0.2 if dtype == torch.bfloat16 else 1e-10
    difference = (torch.cat(pieces, dim=1) - model(ids_BS).logits_BSV).abs().float()
    assert difference.median() < tolerance / 10
    assert difference.max() < (float("inf") if dtype == torch.bfloat16 else tolerance)


@pytest.mark.parametrize("batch", [1, 3, FEW_ROWS])
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_greedy_ids_equal_those_of_transformers(
    tiny_model: MakeModel, draw_ids: MakeIds, batch: int, length: int, top_k: int
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")
    from chronomoe.pretrained.mixtral import mixtral_config, to_mixtral

    model, prompt_BS = tiny_model(top_k=top_k), draw_ids(batch, length)
    config = mixtral_config(model.settings, RouterSettings(kind="mixtral", top_k=top_k))
    theirs = transformers.MixtralForCausalLM(config).eval()
    theirs.load_state_dict(to_mixtral(model.state_dict(), model.settings))
    options = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(prompt_BS)  # else it takes every 0 in a prompt for padding
    expected_BS = theirs.generate(prompt_BS, max_new_tokens=NEW, **options)[:, length:]
    mine_BS = torch.stack(list(generate(model, prompt_BS, max_new_tokens=NEW, temperature=0)), dim=1)
    assert mine_BS.tolist() == expected_BS.tolist()


def test_generations_share_nothing(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, first_BS, second_BS = tiny_model(), draw_ids(1, 5), draw_ids(3, 9, seed=2)
    alone = [
        torch.stack(list(generate(model, of_BS, max_new_tokens=NEW, temperature=0))) for of_BS in (first_BS, second_BS)
    ]
    turns = zip(
        *(generate(model, of_BS, max_new_tokens=NEW, temperature=0) for of_BS in (first_BS, second_BS)), strict=True
    )
    for step, drawn in enumerate(turns):
        assert [ids_B.tolist() for ids_B in drawn] == [of_NB[step].tolist() for of_NB in alone]


def test_generated_ids_may_be_trained_on(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model()
    new_BS = torch.stack(list(generate(model, draw_ids(2, 4), max_new_tokens=4)), dim=1)
    model(new_BS[:, :-1]).loss(new_BS[:, 1:]).backward()
    assert model.embedding.weight.grad is not None


@torch.no_grad()
def test_a_cache_behind_left_padding_equals_the_unpadded_sequence(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = tiny_model(), draw_ids(1, 9)
    padded_BS = torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids_BS), dim=1)
    real_BC = torch.arange(13)[None] >= 4
    state = model.new_state(1, 13)
    first = model(padded_BS[:, :8], real_BC=real_BC[:, :8], state=state).logits_BSV
    rest = model(padded_BS[:, 8:], real_BC=real_BC, state=state).logits_BSV
    torch.testing.assert_close(torch.cat((first, rest), dim=1)[:, 4:], model(ids_BS).logits_BSV, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)], ids=["greedy", "sampled", "top-p"]
)
@torch.no_grad()
def test_generation_equals_full_recomputation(
    tiny_model: MakeModel, draw_ids: MakeIds, temperature: float, top_p: float
) -> None:
    model, prompt_BS = tiny_model(), draw_ids(3, 5)
    options = {"temperature": temperature, "top_p": top_p}
    seeded = torch.Generator().manual_seed(7)
    cached_BS = torch.stack(list(generate(model, prompt_BS, max_new_tokens=NEW, generator=seeded, **options)), dim=1)
    seeded, ids_BS = torch.Generator().manual_seed(7), prompt_BS
    for _ in range(NEW):
        drawn_B = sample(model(ids_BS).logits_BSV[:, -1], temperature, top_p, seeded)
        ids_BS = torch.cat((ids_BS, drawn_B[:, None]), dim=1)
    assert cached_BS.tolist() == ids_BS[:, 5:].tolist()
    assert cached_BS.unique().numel() > 3


def test_generation_past_the_context_raises(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    with pytest.raises(ValueError, match="exceed max_seq_len=32"):
        next(generate(tiny_model(), draw_ids(1, 30), max_new_tokens=3))


def test_a_state_without_room_makes_it(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model, ids_BS = tiny_model(), draw_ids(2, 12)
    state = model.new_state(2)
    pieces = [model(part_BS, state=state).logits_BSV for part_BS in ids_BS.split([1, 4, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids_BS).logits_BSV, rtol=1e-5, atol=1e-5)


def test_generating_counts_nothing_and_changes_no_weight(tiny_model: MakeModel, draw_ids: MakeIds) -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(generate(model, draw_ids(1, 4), max_new_tokens=4))
    assert not model.sensor_LEC.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def draw_many(logits: list[float], temperature: float, top_p: float, draws: int = 4000) -> Tensor:
    """Frequencies of each id over many draws."""
    rows = torch.tensor(logits).expand(draws, -1)
    ids = sample(rows, temperature, top_p, torch.Generator().manual_seed(0))
    return ids.bincount(minlength=len(logits)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_at_their_temperature(temperature: float) -> None:
    logits = [0.0, 2.0, -1.0, 1.0]
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    torch.testing.assert_close(draw_many(logits, temperature, 1.0), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, [1]), (0.64, [1]), (0.66, [1, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float, kept: list[int]) -> None:
    # softmax of these is 0.087, 0.643, 0.032, 0.237
    frequencies = draw_many([0.0, 2.0, -1.0, 1.0], 1.0, top_p)
    assert frequencies.nonzero().flatten().tolist() == kept
