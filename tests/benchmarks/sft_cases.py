"""What `bench_sft` measures: its cases, and how long a start takes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.common import Result


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        title: in words.
        shape: of the model, one of `models.SHAPES`; None for the shipped architecture.
        overrides: of the Nexus command line.
        trl: settings of TRL's trainer that say the same.
        rows_per_step: rows of a step.
        steps: optimizer steps of one measurement, unless told otherwise.
        half: whether products run in bfloat16, beside weights in float32, in all modes.
        modes: of `bench_sft.MODES`, unless told otherwise; empty for all that are fair.
    """

    title: str
    shape: str | None = None
    overrides: tuple[str, ...] = ()
    trl: Mapping[str, Any] = field(default_factory=dict)
    rows_per_step: int = 16
    steps: int = 5
    half: bool = False
    modes: tuple[str, ...] = ()

    def arithmetic(self) -> AbstractContextManager[Any]:
        """In which a bare loop computes."""
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half)


CASES = {
    "tiny": Case("nexus_tiny's shape (vocabulary 4,096), float32"),
    "lora": Case("nexus_tiny's shape, LoRA r=16 on all linear layers, float32", overrides=("method=lora",)),
    # 77 % of the parameters are the head's
    "wide": Case("75.7 M parameters, vocabulary 151,936, float32", shape="152k", rows_per_step=8, steps=4),
    "wide_bf16": Case(
        "75.7 M parameters, vocabulary 151,936, products in bfloat16", shape="152k", rows_per_step=8, steps=4,
        overrides=("hardware.precision=bf16",), half=True,
    ),
    "overhead": Case(
        "a model of one layer, 8 wide; every step is logged", shape="atom", rows_per_step=1, steps=300,
        overrides=("callbacks.metrics_csv.every_n_steps=1",), trl={"logging_steps": 1},
        modes=("nexus", "packed", "trl_padded"),
    ),
    "start": Case("nexus_tiny's shape on 64 chats", modes=("nexus", "trl_padded")),
}  # fmt: skip


def write_chats(path: Path) -> None:
    """64 chats in a form that both read."""
    from nexus.data.synthetic import cot

    rows = cot.rows(view="sft", split="train", count=64, seed=1)
    path.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows), encoding="utf-8")


def _note_first(found: Result) -> None:
    """The clocks behind the first step; later ones are not looked at."""
    found.setdefault("cpu", time.process_time())
    found.setdefault("moment", time.time())


def start_nexus(case: Case, model: Path, folder: Path) -> Result:
    """`python -m nexus.train data.train=FILE`, until its first optimizer step is done.

    Args:
        case: for its rows.
        model: its folder; the chats lie beside it.
        folder: to write in.

    Returns:
        `cpu`: seconds of the process. `moment`: the wall clock's time.
    """
    from nexus import train
    from nexus.methods.base import Method

    step = Method.training_step
    found: Result = {}

    def timed(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        _note_first(found)

    Method.training_step = timed  # type: ignore[method-assign]
    sys.argv = [
        "nexus.train", f"base_model.path={model}", f"data.train={model.parent / 'rows.jsonl'}",
        "data.validation_fraction=0", "hardware=cpu", "hardware.threads=1", "data.num_proc=1", "data.cache=false",
        "method.max_steps=1", "package.enabled=false", f"data.global_batch_size={case.rows_per_step}",
        f"paths.output_dir={folder}", f"run_dir={folder / 'run'}",
    ]  # fmt: skip
    with redirect_stdout(sys.stderr):
        status = train.main()
    assert status == 0, status
    return found


def start_trl(case: Case, model: Path, folder: Path) -> Result:
    """The script of TRL's documentation for the same file, until its first optimizer step is done.

    Args:
        case: for its rows.
        model: its folder; the chats lie beside it.
        folder: to write in.

    Returns:
        `cpu`: seconds of the process. `moment`: the wall clock's time.
    """
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")  # read at the import; nothing of an earlier round
    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    found: Result = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _note_first(found)

    arguments = SFTConfig(
        output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=1,
        per_device_train_batch_size=case.rows_per_step, max_length=1024, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = load_dataset("json", data_files=str(model.parent / "rows.jsonl"), split="train")
    SFTTrainer(model=str(model), args=arguments, train_dataset=data, callbacks=[Watch()]).train()
    return found
