"""Losses and gradients of the GRPO family equal TRL's on the same tensors, group advantages those of its runs.

TRL keeps its formulas inside the trainers, so `_compute_loss` is called with a namespace in the place of the trainer,
that has the settings which the formula reads and hands back our leaf tensors instead of a forward pass. Advantages are
computed amid the rollout, so real trainers of a tiny model make one. TRL 1.16 has no PPO any more: its formulas are
compared with loops in tests/unit/test_functional_ppo.py.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from nexus.functional.advantages import AdvantageScale, equal_groups, group_advantages, leave_one_out_advantages
from nexus.functional.grpo import dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss, rloo_loss
from nexus.functional.kl import penalized_scores

trl = pytest.importorskip("trl", reason="a test peer; installed by requirements-test.lock")

ROWS, WIDTH, MAX_NEW_TOKENS = 6, 9, 12
EPSILON_LOW, EPSILON_HIGH = 0.2, 0.28


def rollout(spread: float) -> dict[str, torch.Tensor]:
    """Completions of 1 to 9 tokens; `spread` makes ratios far enough from 1 that some are clipped and some are not."""
    generator = torch.Generator().manual_seed(5)
    logprobs = -torch.rand(ROWS, WIDTH, generator=generator) * 3 - 0.1
    lengths = torch.tensor([9, 1, 4, 7, 2, 5])
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs + spread * torch.randn(ROWS, WIDTH, generator=generator),
        "ref_logprobs": logprobs + 0.5 * torch.randn(ROWS, WIDTH, generator=generator),
        "entropies": torch.rand(ROWS, WIDTH, generator=generator),
        "advantages": torch.tensor([1.3, -0.7, 0.0, -1.1, 0.9, 0.4]),
        "completion_mask": torch.arange(WIDTH) < lengths[:, None],
    }


def accelerator() -> SimpleNamespace:
    """One process: what is gathered or reduced is what was there."""
    return SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )


def grpo_self(logprobs: torch.Tensor, data: dict, *, loss_type: str, level: str, beta: float) -> SimpleNamespace:
    """What `GRPOTrainer._compute_loss` reads of its trainer."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logprobs, data["entropies"], None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        loss_type=loss_type,
        beta=beta,
        epsilon_low=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_NEW_TOKENS,
    )


def trl_inputs(data: dict) -> dict[str, torch.Tensor]:
    mask = data["completion_mask"]
    return {
        "prompt_ids": torch.zeros(ROWS, 2, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, WIDTH, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": data["advantages"],
        "old_per_token_logps": data["old_logprobs"],
        "ref_per_token_logps": data["ref_logprobs"],
        "num_items_in_batch": mask.sum(),
    }


VARIANTS = {
    "grpo": (grpo_loss, "grpo", "token", {}),
    "dr_grpo": (dr_grpo_loss, "dr_grpo", "token", {"max_new_tokens": MAX_NEW_TOKENS}),
    "dapo": (dapo_loss, "dapo", "token", {}),
    "gspo": (gspo_loss, "grpo", "sequence", {}),
}


@pytest.mark.parametrize("spread", [0.0, 0.15, 2.0])
@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradient_and_metrics_equal_trl(variant, kl_coef, spread):
    loss_fn, loss_type, level, extra = VARIANTS[variant]
    data = rollout(spread)
    theirs = data["logprobs"].clone().requires_grad_()
    trainer = grpo_self(theirs, data, loss_type=loss_type, level=level, beta=kl_coef)
    expected = trl.GRPOTrainer._compute_loss(trainer, None, trl_inputs(data))
    expected.backward()

    ours = data["logprobs"].clone().requires_grad_()
    settings = {"epsilon_low": EPSILON_LOW, "epsilon_high": EPSILON_HIGH, "kl_coef": kl_coef}
    output = loss_fn(**(data | {"logprobs": ours}), **settings, **extra)
    output.loss.backward()

    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert theirs.grad.abs().max() > 1e-3
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    if variant == "gspo" or loss_type == "dapo":  # elsewhere TRL's metrics have another unit than its loss
        names = {"clip_fraction/low": "clip_ratio/low_mean", "clip_fraction/high": "clip_ratio/high_mean"}
        for mine, other in names.items():
            assert output.metrics[mine].item() == pytest.approx(logged[other], abs=1e-6)
        if spread == 2.0:
            assert logged["clip_ratio/low_mean"] > 0
            assert logged["clip_ratio/high_mean"] > 0
    if loss_type == "dapo":
        assert output.metrics["entropy"].item() == pytest.approx(logged["entropy"], rel=1e-5)
        if kl_coef:
            assert output.metrics["kl"].item() == pytest.approx(logged["kl"], rel=1e-5)


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_rloo_equals_trl(spread):
    data = rollout(spread)
    mask = data["completion_mask"]
    theirs = data["logprobs"].clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator(),
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (theirs, data["entropies"], None),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        epsilon_low=EPSILON_LOW,
        epsilon_high=EPSILON_HIGH,
    )
    inputs = trl_inputs(data) | {"old_logps": (data["old_logprobs"] * mask).sum(1)}
    expected = trl.RLOOTrainer._compute_loss(trainer, None, inputs)
    expected.backward()

    ours = data["logprobs"].clone().requires_grad_()
    del data["ref_logprobs"]
    output = rloo_loss(**(data | {"logprobs": ours}), epsilon_low=EPSILON_LOW, epsilon_high=EPSILON_HIGH)
    output.loss.backward()
    assert torch.allclose(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert theirs.grad.abs().max() > 1e-2
    for mine, other in {"low": "clip_ratio/low_mean", "high": "clip_ratio/high_mean"}.items():
        wanted = trainer._metrics["train"][other][-1]
        assert output.metrics[f"clip_fraction/{mine}"].item() == pytest.approx(wanted, abs=1e-6)


def some_reward(completions: list[str], **_: object) -> list[float]:
    """Deterministic and uneven: 0, 1, 2 or 3 by the text; a text that starts in the lower half earns nothing."""
    sums = [zlib.crc32(text.encode()) for text in completions]
    return [float(s % 4) for s in sums]


def tiny_trainer(name: str, tmp_path, **settings: object):
    """A trainer of a 2-layer model over 4 prompts with 4 answers each of at most 3 tokens."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    words = {f"w{i}": i for i in range(12)}
    core = Tokenizer(WordLevel(words, unk_token="w1"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w2", pad_token="w0", padding_side="left")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")  # TRL loads its reference from there
    config_class = getattr(trl, f"{name}Config")
    return getattr(trl, f"{name}Trainer")(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        reward_funcs=some_reward,
        args=config_class(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=16,
            num_generations=4,
            max_completion_length=3,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(3, 7)]}),
        processing_class=tokenizer,
    )


def one_rollout(trainer):
    """Rewards and advantages of one step of the trainer, by (prompt, answer), and the tensors of its loss."""
    trainer.model.train()
    rows = [{"prompt": f"w{i} w{i + 1}"} for i in range(3, 7) for _ in range(4)]
    batch = trainer._generate_and_score_completions(rows)
    rewards = torch.tensor(list(trainer._logs["rewards"]["some_reward"]))
    return rewards, batch


@pytest.mark.parametrize("scale", list(AdvantageScale))
def test_group_advantages_equal_those_of_a_trl_run(tmp_path, monkeypatch, scale):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rewards, batch = one_rollout(tiny_trainer("GRPO", tmp_path, scale_rewards=str(scale)))
    assert rewards.unique().numel() > 2
    ours = group_advantages(rewards=rewards, num_generations=4, scale=scale)
    assert torch.allclose(ours, batch["advantages"], rtol=1e-5, atol=1e-6)
    assert not equal_groups(rewards=rewards, num_generations=4).all()


def test_leave_one_out_with_penalty_equals_that_of_a_trl_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trainer = tiny_trainer("RLOO", tmp_path, beta=0.3)
    with torch.no_grad():  # away from the reference, so that the penalty is not zero
        for parameter in trainer.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    seen = {}
    inner = trainer._get_per_token_logps_and_entropies

    def record(model, *args, **kwargs):
        result = inner(model, *args, **kwargs)
        seen["policy" if model is trainer.model else "reference"] = result[0]
        return result

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", record)
    rewards, batch = one_rollout(trainer)
    scores = penalized_scores(
        scores=rewards,
        logprobs=seen["policy"],
        ref_logprobs=seen["reference"],
        completion_mask=batch["completion_mask"].bool(),
        kl_coef=0.3,
    )
    assert (scores - rewards).abs().max() > 0.05
    ours = leave_one_out_advantages(rewards=scores, num_generations=4)
    assert torch.allclose(ours, batch["advantages"], rtol=1e-5, atol=1e-5)
