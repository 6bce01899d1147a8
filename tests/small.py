"""A model, rows, a method and a trainer so small that a fit takes a moment; tests of the training loop share them."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

import nexus
from nexus.callbacks.checkpoint import AtomicCheckpointIO, StepCheckpoint
from nexus.callbacks.hold import Desk
from nexus.callbacks.validation import Validation
from nexus.data.collate import Rows, collate_step
from nexus.data.corpus import Corpus
from nexus.data.module import NexusDataModule
from nexus.evaluation.held_out import held_out_loss
from nexus.flags import Flags
from nexus.methods.base import Method
from nexus.methods.reward_model import RewardModel
from nexus.methods.sft import SFT
from nexus.methods.step_guard import StepGuard
from nexus.stages.lean_loop import LeanEpochLoop, LeanStrategy
from nexus.storage.run_status import Board
from nexus.types import LossUnit, MicroBatch, TokenizedExample, TokenizedGroup

ASSETS = Path(nexus.__path__[0]) / "assets"

#: A Qwen3 with the vocabulary of the shipped tokenizer.
ARCHITECTURE: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
#: Sizes of a decoder of any family, with so small a vocabulary that whole logits can be compared.
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
#: What a method takes in the place of a chunk size.
OWN_SETTINGS: dict[type, dict[str, Any]] = {RewardModel: {"margin": 0.0, "center_coef": 0.01, "head_lr_ratio": 10.0}}
NO_ADAPTER = {"name": "none"}
DORA = {
    "name": "dora",
    "r": 4,
    "alpha": 8,
    "dropout": 0.0,
    "target_modules": "all-linear",
    "use_rslora": False,
    "loraplus_ratio": None,
}
LORA = {**DORA, "name": "lora", "init": "default"}
QLORA = {**LORA, "name": "qlora", "quant_type": "nf4", "double_quant": True}
QUANTIZATION = {"quant_type": "nf4", "double_quant": True, "device": "cpu"}


def settings(path: str | None = None, **more: Any) -> dict[str, Any]:
    """What `load_model` takes, without the seed; random weights unless a folder is named."""
    return more | {
        "path": path,
        "architecture": None if path else ARCHITECTURE,
        "revision": None,
        "trust_remote_code": False,
        "dtype": "float32",
    }


def make_guard(**changes: Any) -> StepGuard:
    """The guard of `conf/train.yaml`."""
    chosen: dict[str, Any] = {"spike_factor": 100.0, "spike_window": 20, "max_skipped_in_a_row": 10}
    return StepGuard(**(chosen | changes))


def make_method(kind: type[Method] = SFT, **changes: Any) -> Any:
    """A method on the small model, SFT unless another is named; built by `configure_model`."""
    chosen: dict[str, Any] = {
        "base_model": settings(),
        "adapter": NO_ADAPTER,
        "optimizer": functools.partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        "schedule": "cosine",
        "warmup_ratio": 0.2,
        "min_lr_ratio": 0.0,
        "gradient_clip": 1.0,
        "neftune_alpha": None,
        "gradient_checkpointing": False,
        "compile_model": False,
        "total_steps": 6,
        "seed": 11,
        **OWN_SETTINGS.get(kind, {"chunk_size": 16}),
        "guard": make_guard(),
    }
    return kind(**(chosen | changes))


def make_rows(count: int, *, seed: int = 0, longest: int = 30) -> list[TokenizedExample]:
    """Rows of uneven length whose shares of target tokens differ widely."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        length = rng.randint(4, longest)
        prompt = rng.randint(1, length - 2)
        ids = [rng.randint(3, ARCHITECTURE["vocab_size"] - 1) for _ in range(length)]
        rows.append(TokenizedExample(f"row:{index}", "test", ids, [position >= prompt for position in range(length)]))
    return rows


def make_pairs(count: int, *, seed: int = 0) -> list[TokenizedGroup]:
    """Pairs of uneven length, with made-up log-probabilities of a reference."""
    rng = random.Random(seed)
    top = ARCHITECTURE["vocab_size"] - 1
    pairs = []
    for index in range(count):
        lengths = [rng.randint(1, 12), rng.randint(1, 12)]
        pairs.append(
            TokenizedGroup(
                id=f"pair:{index}",
                source="test",
                prompt_ids=[rng.randint(3, top) for _ in range(rng.randint(2, 15))],
                completions=tuple([rng.randint(3, top) for _ in range(length)] for length in lengths),
                loss_masks=tuple([True] * length for length in lengths),
                values={
                    "ref_logprobs": tuple(-8.0 * length - rng.random() for length in lengths),
                    "desirable": (float(index % 3 != 0),) * 2,
                },
            )
        )
    return pairs


def make_step(
    rows: Rows,
    *,
    packing: bool = True,
    micro_batch_size: int | None = None,
    loss_unit: LossUnit = LossUnit.TOKEN,
) -> list[MicroBatch]:
    """One optimizer step over all rows."""
    return collate_step(
        rows,
        packing=packing,
        micro_batch_size=micro_batch_size,
        micro_batch_tokens=None,
        pad_token_id=0,
        world_size=1,
        loss_unit=loss_unit,
    )


class Steps:
    """A loader over steps that were made beforehand."""

    def __init__(self, steps: list[list[MicroBatch]]) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Any:
        return iter(self.steps)


class Given(NexusDataModule):
    """Hands out given steps instead of a corpus."""

    def __init__(self, steps: list[list[MicroBatch]]) -> None:
        super(NexusDataModule, self).__init__()
        self.steps = steps

    def train_dataloader(self) -> Any:
        """The steps."""
        return Steps(self.steps)


def make_saver(folder: Path, **changes: Any) -> StepCheckpoint:
    """Checkpoints in `folder/checkpoints`; with a full disk they give up at once."""
    chosen: dict[str, Any] = {
        "every_n_steps": 100,
        "keep": 2,
        "wait_for_space_minutes": 1e-9,
        "seconds_between_tries": 0.01,
        "folder": str(folder / "checkpoints"),
        "identity": {"seed": 11},
        "fast_resumes": [],
        "desk": Desk(board=Board(folder), flags=Flags()),
    }
    return StepCheckpoint(**(chosen | changes))


def make_validation(folder: Path, **changes: Any) -> Validation:
    """Validation on all held-out rows after every second step."""
    chosen: dict[str, Any] = {
        "enabled": True,
        "every_n_steps": 2,
        "max_rows": None,
        "restore_best": False,
        "loss_of": lambda model, batches: held_out_loss(model, batches)["loss"].value,
        "desk": Desk(board=Board(folder), flags=Flags()),
    }
    return Validation(**(chosen | changes))


def make_trainer(
    folder: Path,
    *,
    max_steps: int,
    callbacks: list[Callback] | None = None,
    logger: Any = False,
    precision: Any = "32-true",
    lean: bool = True,
) -> Trainer:
    """A trainer with the settings of `stages.assemble`, on the processor; not `lean`, with the loop of Lightning."""
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        strategy=LeanStrategy("cpu") if lean else "auto",
        precision=precision,
        max_steps=max_steps,
        max_epochs=-1,
        logger=logger,
        callbacks=callbacks or [],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    if lean:
        trainer.fit_loop.epoch_loop = LeanEpochLoop(trainer, max_steps=max_steps)
    return trainer


def fit_steps(method: Any, steps: list[list[MicroBatch]], folder: Path, callbacks: list[Callback] | None = None) -> Any:
    """Train `method` on the given steps."""
    method.configure_model()
    method.train()
    make_trainer(folder, max_steps=len(steps), callbacks=callbacks).fit(method, datamodule=Given(steps))
    return method


@functools.cache
def make_tokenizer() -> Any:
    """Tokenizer of the shipped model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS / "nexus_tiny")


def make_corpus(tokenizer: Any, *, setup: bool = True, **changes: Any) -> Corpus:
    """Twelve rows of the embedded tools generator, read unless told otherwise; four make a step, two a micro-batch."""
    card = {
        "name": "nexus_tools",
        "kind": "embedded",
        "generator": "tools",
        "roles": ["train", "eval"],
        "rows": 12,
        "size": None,
        "eval_rows": 2,
        "seed": 1,
        "fields": {},
        "weight": 1.0,
        "license": "MIT",
    }
    chosen: dict[str, Any] = {
        "sources": {"tools": {"embedded": card}},
        "train": None,
        "validation": None,
        "validation_fraction": 0.0,
        "view": "sft",
        "count_tokens": "completion",
        "max_seq_len": 512,
        "long_rows": "error",
        "packing": True,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "micro_batch_tokens": None,
        "shuffle": True,
        "seed": 42,
        "epochs": 2,
        "max_steps": None,
        "rows_per_source": None,
        "eval_prompts": None,
        "max_bad_rows": 0,
        "num_proc": 1,
        "cache": None,
        "tokenizer": tokenizer,
    }
    corpus = Corpus(**(chosen | changes))
    if setup:
        corpus.setup("fit")
    return corpus


def weights(method: SFT) -> dict[str, torch.Tensor]:
    """Copies of all weights by name."""
    return {name: p.detach().clone() for name, p in method.named_parameters()}
