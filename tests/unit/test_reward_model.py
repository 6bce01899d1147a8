"""Reward models: where the reward is read, what a package holds, what is refused, and that they learn an order."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nexus.errors import NexusError
from nexus.evaluation.preference import reward_accuracy
from nexus.functional.completions import last_positions
from nexus.functional.packing import split_micro_batch
from nexus.functional.shapes import ShapeError
from nexus.methods.reward_model import RewardModel
from nexus.models.loader import load_model
from nexus.models.reward_facts import reward_model_problems
from nexus.models.reward_model import load_reward_model, score_rewards
from nexus.models.value_head import completion_rewards
from nexus.packaging.pack import write_package
from nexus.rollout.collect import REWARD
from nexus.rollout.judge import Judge
from nexus.types import LossUnit, TokenizedGroup
from tests import small


def make_method(**changes: Any) -> RewardModel:
    method: RewardModel = small.make_method(RewardModel, **changes)
    method.configure_model()
    return method


def one_token() -> TokenizedGroup:
    return TokenizedGroup("one", "test", [5, 6, 7], ([9], [8, 10]), ([True], [True, True]))


@pytest.mark.parametrize("packing", [True, False])
def test_the_reward_is_read_at_the_last_token(packing: bool) -> None:
    pairs = [
        *small.make_pairs(3),
        one_token(),
        replace(one_token(), completions=([8, 10], [9]), loss_masks=([True] * 2, [True])),
    ]
    # what stands behind the last counted token has no part in it
    pairs[0] = replace(
        pairs[0],
        completions=tuple([*ids, 77] for ids in pairs[0].completions),
        loss_masks=tuple([*mask, False] for mask in pairs[0].loss_masks),
    )
    pairs = [replace(pair, values={}) for pair in pairs]
    [batch] = small.make_step(pairs, packing=packing, loss_unit=LossUnit.GROUP)
    ends = [
        [i for i, c in zip(ids, mask, strict=True) if c][-1]
        for p in pairs
        for ids, mask in zip(p.completions, p.loss_masks, strict=True)
    ]
    assert batch.input_ids.flatten()[last_positions(batch)].tolist() == ends
    method = make_method().eval()
    with torch.no_grad():
        ours = method.rewards(batch)
        alone = []
        for pair in pairs:
            for ids, mask in zip(pair.completions, pair.loss_masks, strict=True):
                row = torch.tensor([pair.prompt_ids + ids[: sum(mask)]])
                hidden = method.policy.base_model(input_ids=row, use_cache=False).last_hidden_state[0, -1]
                alone.append((hidden * method.reward_head.weight[0]).sum())
    torch.testing.assert_close(ours, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_no_reward_without_a_token() -> None:
    [batch] = small.make_step([one_token()], loss_unit=LossUnit.GROUP)
    with pytest.raises(ShapeError):
        last_positions(replace(batch, completion_lengths=(0, 3)))


def test_a_step_cut_in_parts_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make_method(margin=0.5)
    monkeypatch.setattr(method, "manual_backward", lambda loss: loss.backward())
    [whole] = small.make_step(small.make_pairs(4), loss_unit=LossUnit.GROUP)
    found = []
    for batch in ([whole], split_micro_batch(whole)):
        method.zero_grad()
        metrics = method.accumulate(batch)
        gradient = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
        found.append((gradient, metrics["train/loss"]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])


def orders(count: int, seed: int) -> list[TokenizedGroup]:
    """Pairs whose better answer holds token 40 once; nothing else tells them apart."""
    pairs = []
    for index, pair in enumerate(small.make_pairs(count, seed=seed)):
        ids = [100 + (index * 7 + k) % 50 for k in range(5)]
        good = [*ids[:2], 40, *ids[2:]]
        bad = [*ids[:2], 41, *ids[2:]]
        pairs.append(replace(pair, completions=(good, bad), loss_masks=([True] * 6,) * 2, values={}))
    return pairs


@pytest.mark.parametrize("adapter", [small.NO_ADAPTER, small.LORA], ids=lambda adapter: adapter["name"])
def test_it_learns_and_its_package_says_the_same(tmp_path: Path, adapter: dict[str, Any]) -> None:
    method = make_method(adapter=adapter, total_steps=20, schedule="constant")
    held_out = small.make_step(orders(16, seed=9), loss_unit=LossUnit.GROUP)
    before = reward_accuracy(method.rewards, method, held_out)
    rows = orders(80, seed=1)
    steps = [small.make_step(rows[i * 8 % 80 : i * 8 % 80 + 8], loss_unit=LossUnit.GROUP) for i in range(20)]
    small.fit_steps(method, steps, tmp_path)
    after = reward_accuracy(method.rewards, method, held_out)
    assert after["accuracy"].value == 1.0 > before["accuracy"].value
    assert after["margin"].value > 1 > before["margin"].value
    assert after["accuracy"].n == 16

    [batch] = held_out
    trained = score_rewards(method.rewards, method, [batch])
    tokenizer = small.make_tokenizer()
    info = write_package(
        model=method.policy,
        tokenizer=tokenizer,
        folder=tmp_path / "package",
        base_name="small",
        card=lambda difference: "card",
        probe=[5, 6, 7, 8],
        tolerance=1e-4,
        reward_head=method.reward_head,
    )
    assert info.max_logit_difference < 1e-4
    assert (info.path / "adapter").exists() == (adapter["name"] == "lora")
    judge = load_reward_model(path=str(info.path), dtype="float32")
    again = score_rewards(lambda b: completion_rewards(judge, judge.score, b), judge, [batch])
    torch.testing.assert_close(again, trained, rtol=1e-4, atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(info.path)
    with torch.no_grad():
        pair = orders(16, seed=9)[0]
        theirs = [plain(torch.tensor([pair.prompt_ids + ids])).logits[0, 0] for ids in pair.completions]
    torch.testing.assert_close(trained[0], torch.stack(theirs), rtol=1e-3, atol=1e-4)

    groups = [replace(pair, values={REWARD: (1.0, 2.0)}) for pair in orders(16, seed=9)]
    judged = Judge(judge, weight=0.5, autocast=None)(groups, [batch], device=torch.device("cpu"))
    assert judged[3].values[REWARD] == pytest.approx(
        (1 + 0.5 * float(trained[3, 0]), 2 + 0.5 * float(trained[3, 1])), abs=1e-4
    )
    assert judged[3].values["reward/reward_model"] == pytest.approx(trained[3].tolist(), abs=1e-4)

    with torch.no_grad():
        judge.score.weight.fill_(torch.nan)
    with pytest.raises(NexusError, match="not finite") as broken:
        Judge(judge, weight=0.5, autocast=None)(groups, [batch], device=torch.device("cpu"))
    assert broken.value.code == "E-RL-02"
    assert groups[0].id in broken.value.where

    with pytest.raises(NexusError) as refused:
        load_model(**small.settings(str(info.path)), seed=0)
    assert refused.value.code == "E-MOD-21"


def test_only_the_head_and_what_is_trained_go_into_a_checkpoint() -> None:
    method = make_method(adapter=small.LORA)
    names = set(method.state_dict())
    assert "reward_head.weight" in names
    assert all("lora_" in name for name in names - {"reward_head.weight"})
    rates = {group["lr"] for group in method.configure_optimizers()["optimizer"].param_groups}
    assert len(rates) == 2
    assert max(rates) == pytest.approx(10 * min(rates))


def problem_of(path: Path) -> tuple[str, str]:
    [problem] = reward_model_problems({"method": {"reward_model": str(path)}})
    return problem.code, problem.message


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    assets = small.ASSETS / "nexus_tiny"
    code, message = problem_of(assets)
    assert code == "E-MOD-19"
    assert "ForCausalLM" in message
    with pytest.raises(NexusError) as refused:
        load_reward_model(path=str(assets), dtype="float32")
    assert refused.value.code == "E-MOD-19"
    shutil.copytree(assets, tmp_path / "two", ignore=shutil.ignore_patterns("manifest.json"))  # it is edited below
    config = json.loads((assets / "config.json").read_text())
    config["architectures"] = ["Qwen3ForSequenceClassification"]
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    assert problem_of(tmp_path / "two") == ("E-MOD-19", problem_of(tmp_path / "two")[1])
    assert "2 labels" in problem_of(tmp_path / "two")[1]
    config["id2label"] = {"0": "LABEL_0"}
    (tmp_path / "two" / "config.json").write_text(json.dumps(config))
    assert list(reward_model_problems({"method": {"reward_model": str(tmp_path / "two")}})) == []
    with pytest.raises(NexusError) as refused:
        load_reward_model(path=str(tmp_path / "two"), dtype="float32")
    assert refused.value.code == "E-MOD-06"
    assert "score.weight" in refused.value.message
    (tmp_path / "empty").mkdir()
    assert problem_of(tmp_path / "empty")[0] == "E-MOD-03"


def test_a_decoder_without_such_a_class_is_refused_before_training() -> None:
    bloomless = {"model_type": "codegen", "vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 4,
                 "n_positions": 32, "bos_token_id": None, "eos_token_id": 2}  # fmt: skip
    with pytest.raises(NexusError) as refused:
        make_method(base_model={**small.settings(), "architecture": bloomless})
    assert refused.value.code == "E-MOD-20"
