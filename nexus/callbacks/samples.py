"""A few greedy answers to held-out prompts while training, to `samples.jsonl` and the terminal."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.markup import escape

from nexus.rollout.environment import Conversation, Environment, converse
from nexus.rollout.generate import generate
from nexus.storage.atomic import is_disk_full, write_text
from nexus.types import Generation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SamplePrompt:
    """A held-out prompt with the settings of its capability, under which it is scored too.

    Attributes:
        token_ids: of all its turns, the generation prompt included.
        tools: definitions on offer.
        environment: executes what is called, so that the answer goes on; None leaves it at one turn.
        max_new_tokens: limit of the whole answer.
    """

    token_ids: list[int]
    tools: tuple[dict[str, Any], ...]
    environment: Environment | None
    max_new_tokens: int


class Samples(Callback):
    """Answers the same prompts every `every_n_steps` optimizer steps.

    A line of `samples.jsonl` holds `step`, `id`, `answer` (what the model wrote, turn after turn) and `finished`; where
    an environment spoke in between also `turns`, the whole conversation behind the prompt.

    Args:
        every_n_steps: optimizer steps between two looks.
        count: prompts to answer.
        path: `samples.jsonl`; given by the run.
        prompts: by row name; given by the run, may be fewer than `count`.
        tokenizer: decodes the answers; given by the run.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        count: int,
        path: str,
        prompts: Mapping[str, SamplePrompt],
        tokenizer: Any,
    ) -> None:
        if every_n_steps < 1 or count < 1:
            raise ValueError("every_n_steps and count must be at least 1")
        self.every_n_steps = every_n_steps
        self.path = Path(path)
        self.prompts = dict(list(prompts.items())[:count])
        self.tokenizer = tokenizer
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
        answers = self._answers(model)
        model.train(was_training)
        rows = [
            {"step": trainer.global_step, "id": name, "answer": said.text, "finished": said.finished}
            | ({"turns": said.turns} if len(said.turns) > 1 else {})
            for name, said in zip(self.prompts, answers, strict=True)
        ]
        self._keep("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        first = escape(answers[0].text.replace("\n", " ")[:150])
        line = f"[dim]sample at step {trainer.global_step}: {first}[/dim]"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _answers(self, model: Any) -> list[Conversation]:
        """Whole conversations, those of a capability together."""

        def greedy(rows: Sequence[int], prompts: Sequence[Sequence[int]], turn: int, limit: int) -> list[Generation]:
            return generate(
                model=model,
                tokenizer=self.tokenizer,
                prompts=prompts,
                max_new_tokens=limit,
                temperature=0.0,
                seeds=[0] * len(rows),
                batch_size=len(rows),
            )

        found: list[Conversation] = []
        for (environment, limit), group in groupby(
            self.prompts.values(), key=lambda prompt: (prompt.environment, prompt.max_new_tokens)
        ):
            asked = list(group)
            found += converse(
                answer=greedy,
                tokenizer=self.tokenizer,
                prompts=[prompt.token_ids for prompt in asked],
                tools=[prompt.tools for prompt in asked],
                environment=environment,
                max_new_tokens=limit,
            )
        return found

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
