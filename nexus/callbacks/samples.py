"""A few greedy answers to held-out prompts while training, to `samples.jsonl` and the terminal."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape

from nexus.rollout.generate import generate
from nexus.storage.atomic import is_disk_full, write_text

log = logging.getLogger(__name__)


class Samples(Callback):
    """Answers the same prompts every `every_n_steps` optimizer steps.

    Args:
        every_n_steps: optimizer steps between two looks.
        count: prompts to answer.
        path: `samples.jsonl`; given by the run.
        prompts: tokenized prompts by row name; given by the run, may be fewer than `count`.
        tokenizer: decodes the answers; given by the run.
        max_new_tokens: limit of each answer; given by the run.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        count: int,
        path: str,
        prompts: dict[str, list[int]],
        tokenizer: Any,
        max_new_tokens: int,
    ) -> None:
        if every_n_steps < 1 or count < 1:
            raise ValueError("every_n_steps and count must be at least 1")
        self.every_n_steps = every_n_steps
        self.path = Path(path)
        self.prompts = dict(list(prompts.items())[:count])
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.console = Console()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the answers that a resumed run will give again, and a line that a killed run did not finish."""
        if not trainer.is_global_zero or not self.path.exists():
            return
        *lines, _ = self.path.read_text(encoding="utf-8").split("\n")  # what follows the last line's end is unfinished
        write_text(self.path, "".join(f"{li}\n" for li in lines if json.loads(li)["step"] <= trainer.global_step))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Answer the prompts at the step boundary; training goes on as if nothing had happened."""
        if not self.prompts or trainer.global_step % self.every_n_steps or not trainer.is_global_zero:
            return
        model: Any = pl_module.model
        was_training = model.training
        model.eval()
        answers = generate(
            model=model,
            tokenizer=self.tokenizer,
            prompts=list(self.prompts.values()),
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
            seeds=[0] * len(self.prompts),
            batch_size=len(self.prompts),
        )
        model.train(was_training)
        rows = [
            {"step": trainer.global_step, "id": name, "answer": answer.text, "finished": answer.finished}
            for name, answer in zip(self.prompts, answers, strict=True)
        ]
        self._keep("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        first = escape(answers[0].text.replace("\n", " ")[:150])
        line = f"[dim]sample at step {trainer.global_step}: {first}[/dim]"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _keep(self, lines: str) -> None:
        """Append; a full disk costs these answers, not the run, and leaves no half line."""
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            if not is_disk_full(error):
                raise
            os.truncate(self.path, size)
            log.warning("W-OUT-03  the disk is full: answers of this step are not in %s", self.path.name)
