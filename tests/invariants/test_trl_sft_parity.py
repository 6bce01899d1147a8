"""Loss and gradients equal TRL's supervised fine-tuning on the same rows."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from nexus.functional.sft import sft_loss
from nexus.models.attention import enable_segments
from nexus.models.head import LogitForm, output_head, target_hidden_states
from nexus.types import IGNORE_INDEX, MicroBatch

VOCAB = 96
ROWS = [  # (tokens, leading tokens that do not count)
    (list(range(3, 15)), 5),
    (list(range(40, 47)), 2),
    (list(range(60, 83)), 11),
]


def tiny_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"w{i}": i for i in range(VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w1")), eos_token="w2", pad_token="w0"
    )


def packed_batch() -> MicroBatch:
    flat, positions, segments, labels = [], [], [], []
    for tokens, prompt in ROWS:
        segments.append((len(flat), len(flat) + len(tokens)))
        flat += tokens
        positions += range(len(tokens))
        labels += [IGNORE_INDEX] * prompt + tokens[prompt:]
    target_positions = [i - 1 for i, label in enumerate(labels) if label != IGNORE_INDEX]
    return MicroBatch(
        input_ids=torch.tensor([flat]),
        position_ids=torch.tensor([positions]),
        attention_mask=None,
        segments=tuple(segments),
        labels=torch.tensor([labels]),
        target_positions=torch.tensor(target_positions),
        targets=torch.tensor([flat[i + 1] for i in target_positions]),
        loss_scale=1.0,
        num_tokens=len(flat),
        num_target_tokens=len(target_positions),
    )


def test_loss_and_every_gradient_equal_trl(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRACKIO_DISABLE", "1")
    trl = pytest.importorskip("trl", reason="a test peer; installed by requirements-test.lock")
    datasets = pytest.importorskip("datasets")
    ours = tiny_model()
    theirs = copy.deepcopy(ours)

    rows = [{"input_ids": tokens, "labels": [IGNORE_INDEX] * prompt + tokens[prompt:]} for tokens, prompt in ROWS]
    trainer = trl.SFTTrainer(
        model=theirs,
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(rows),
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            remove_unused_columns=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    theirs = trainer.model
    batch = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    expected = trainer.compute_loss(theirs, dict(batch))
    expected.backward()

    enable_segments(ours)
    micro_batch = packed_batch()
    head = output_head(ours)
    loss = sft_loss(
        hidden=target_hidden_states(ours, micro_batch),
        weight=head.weight,
        bias=head.bias,
        targets=micro_batch.targets,
        form=LogitForm.of(ours),
        chunk_size=7,
    ).loss
    loss.backward()

    assert int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) == micro_batch.num_target_tokens == 24
    assert torch.allclose(loss, expected, rtol=1e-5, atol=0)
    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
    assert len(pairs) == 24
    for (name, mine), other in pairs:
        difference = (mine.grad - other.grad).norm() / other.grad.norm()
        assert difference < 1e-5, f"{name}: {difference}"
