"""The decoder of the Llama family against the model's own forward, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nexus.models.adapters import apply_adapter
from nexus.models.embedding import gradient_by_index
from nexus.models.loader import load_model
from nexus.rollout import plain
from nexus.rollout.cache import roomy_cache
from nexus.rollout.plain import plain_decoder
from tests import small

ROPE = {"rope_theta": 10_000.0}
LLAMA3 = {**ROPE, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
FAMILY: dict[str, dict[str, Any]] = {
    "qwen2, biases": {"model_type": "qwen2"},
    "qwen3, norms of query and key": {"model_type": "qwen3"},
    "llama, biases everywhere, no shared keys": {
        "model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4,
    },
    "llama, one key for all, its long rope": {
        "model_type": "llama", "num_key_value_heads": 1, "rope_parameters": LLAMA3, "tie_word_embeddings": True,
    },
    "mistral, yarn": {
        "model_type": "mistral", "sliding_window": None,
        "rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "gemma3": {"model_type": "gemma3_text"},
    "a window": {"model_type": "mistral", "sliding_window": 8},
    "some windows": {
        "model_type": "qwen3", "use_sliding_window": True, "sliding_window": 8,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "another activation": {"model_type": "qwen3", "hidden_act": "gelu"},
    "a rope that follows the length": {
        "model_type": "llama", "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0},
    },
}  # fmt: skip


def load(architecture: dict[str, Any], **changes: Any) -> Any:
    settings = {"path": None, "revision": None, "trust_remote_code": False, "seed": 1, "dtype": "float32"} | changes
    model = load_model(architecture={**small.SIZES, **architecture}, **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.mul_(8)
            elif "bias" in name or "norm" in name:  # new ones are all 0 or all 1
                weight.add_(torch.rand(weight.shape, generator=generator))
    return model.eval()


@torch.no_grad()
def step_both(model: Any, *, tokens: int, prompts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of `tokens` further tokens, by steps and by one pass over each whole row; a row leaves in the middle."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 60, (length + tokens,), generator=generator) for length in prompts]
    width = max(prompts)
    ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for row, length in enumerate(prompts):
        ids[row, width - length :], mask[row, width - length :] = rows[row][:length], 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = roomy_cache(model.config)
    model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    decoder = plain_decoder(model)
    assert decoder is not None
    steps = decoder.begin(cache, mask, positions[:, -1:] + 1, most=tokens)
    kept = list(range(len(prompts)))
    found, expected = [], []
    whole = [model(input_ids=row[None], use_cache=False).logits[0] for row in rows]
    for step in range(tokens):
        if step == tokens // 2:
            steps.select(torch.tensor(kept := kept[1:]))
        found.append(steps.step(torch.stack([rows[row][prompts[row] + step] for row in kept])))
        expected.append(torch.stack([whole[row][prompts[row] + step] for row in kept]))
    return torch.cat(found), torch.cat(expected)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("prompts", [(3, 11, 7), (6, 6)], ids=["padded", "of one length"])
def test_every_token_is_that_of_the_model(name: str, prompts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "ROOM", 3)  # so that the room is used up several times
    model = load(FAMILY[name])
    gradient_by_index(model, at_least=1)  # as a large one that is trained
    found, expected = step_both(model, tokens=10, prompts=prompts)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("state", ["active", "off", "merged"])
def test_an_adapter_counts_as_it_stands(state: str, joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not joined:
        monkeypatch.setattr(plain, "_JOINED_BYTES", 0)
    base = load(FAMILY["qwen2, biases"])
    model = apply_adapter(base, {**small.LORA, "dropout": 0.5}, seed=0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    bare, _ = step_both(load(FAMILY["qwen2, biases"]), tokens=4, prompts=(3, 5))
    if state == "off":
        with model.disable_adapter():
            found, expected = step_both(model, tokens=4, prompts=(3, 5))
    elif state == "merged":
        model.merge_adapter()
        assert plain_decoder(model) is None, "PEFT has written into the weights; its own forward knows"
        return
    else:
        found, expected = step_both(model, tokens=4, prompts=(3, 5))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-5)
    assert torch.allclose(found, bare, atol=1e-3) == (state == "off")


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_in_autocast_products_are_of_its_format(joined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not joined:
        monkeypatch.setattr(plain, "_JOINED_BYTES", 0)
    model = load(FAMILY["qwen2, biases"])
    exact, _ = step_both(model, tokens=4, prompts=(3, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = step_both(model, tokens=4, prompts=(3, 5))
    assert found.dtype == expected.dtype == torch.bfloat16
    rounding = float((expected - exact).norm() / exact.norm())
    assert float((found - expected).norm() / exact.norm()) < 2 * rounding < 0.1


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_of_the_family_is_left_to_its_own_forward(name: str) -> None:
    assert plain_decoder(load(OTHERS[name])) is None


@pytest.mark.parametrize("adapter", [small.DORA, small.QLORA], ids=["dora", "qlora"])
def test_weights_that_are_not_plain_are_left_to_their_own_forward(adapter: dict[str, Any]) -> None:
    quantization = small.QUANTIZATION if adapter is small.QLORA else None
    model = load_model(**small.settings(quantization=quantization), seed=1)
    assert plain_decoder(apply_adapter(model, adapter, seed=0)) is None
