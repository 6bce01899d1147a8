"""What `bench_sft` measures: its cases, and how long a start takes."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.common import Result
from tests.benchmarks.models import load_tokenizer

#: Of the log-normal lengths of `write_texts`, in tokens: shortest, mean, longest; then their spread, which makes padded
#: batches of 8 rows 56 % useful.
_TOKENS = (65, 296, 842)
_SIGMA = 0.55
#: Share of a row's tokens that are its answer.
_ANSWER = 0.61


def write_texts(path: Path, count: int) -> None:
    """Prompts and answers in a made-up language, as uneven in length as real chats."""
    rng = random.Random(7)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    tokenizer = load_tokenizer()
    shortest, mean, longest = _TOKENS

    def text(tokens: int) -> str:
        words = ("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(tokens))
        return str(tokenizer.decode(tokenizer(" ".join(words))["input_ids"][:tokens]))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            length = rng.lognormvariate(math.log(mean) - _SIGMA**2 / 2, _SIGMA)
            whole = min(max(round(length), shortest), longest)
            answer = round(_ANSWER * whole)
            row = {"prompt": text(whole - answer), "response": text(answer)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_chats(path: Path, count: int) -> None:
    """Short chats in a form that all read."""
    from nexus.data.synthetic import cot

    rows = cot.rows(view="sft", split="train", count=count, seed=1)
    path.write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows), encoding="utf-8")


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
        turns: after so many steps it is another process's turn; 0 for measurements from start to end.
        half: whether products run in bfloat16, beside weights in float32, in all modes.
        modes: of `bench_sft.MODES`, unless told otherwise; empty for all that are fair.
        write_rows: writes a file with so many rows.
    """

    title: str
    shape: str | None = None
    overrides: tuple[str, ...] = ()
    trl: Mapping[str, Any] = field(default_factory=dict)
    rows_per_step: int = 8
    steps: int = 6
    turns: int = 0
    half: bool = False
    modes: tuple[str, ...] = ()
    write_rows: Callable[[Path, int], None] = write_texts

    def arithmetic(self) -> AbstractContextManager[Any]:
        """In which a bare loop computes."""
        import torch

        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half)


CASES = {
    "tiny": Case("10.0 M parameters, vocabulary 8,192, float32", shape="8k"),
    "lora": Case(
        "10.0 M parameters, vocabulary 8,192, LoRA r=16 on all linear layers, float32", shape="8k",
        overrides=("method=lora",),
    ),
    # 77 % of the parameters are the head's
    "wide": Case("75.7 M parameters, vocabulary 151,936, float32", shape="152k", rows_per_step=4, steps=4),
    "wide_bf16": Case(
        "75.7 M parameters, vocabulary 151,936, products in bfloat16", shape="152k", rows_per_step=4, steps=4,
        overrides=("hardware.precision=bf16",), half=True,
    ),
    "overhead": Case(
        "a model of one layer, 8 wide; every step is logged", shape="atom", rows_per_step=1, steps=300, turns=20,
        overrides=("callbacks.metrics_csv.every_n_steps=1",), trl={"logging_steps": 1},
        modes=("nexus", "packed", "trl_padded"), write_rows=write_chats,
    ),
    "start": Case(
        "nexus_tiny's shape on 64 chats", rows_per_step=16, modes=("nexus", "trl_padded"), write_rows=write_chats
    ),
}  # fmt: skip
#: Rows of the file from which a start reads.
START_ROWS = 64


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
