"""The data module: a corpus that hands out optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from nexus.data.collate import collate_micro_batch, collate_step, row_tokens
from nexus.data.corpus import Corpus
from nexus.data.stream import StepLoader
from nexus.data.token_rows import AnyRow
from nexus.errors import NexusError
from nexus.types import LossUnit, MicroBatch, TokenizedGroup


class NexusDataModule(LightningDataModule):
    """Loaders over the rows of one training phase.

    Args:
        corpus: rows that were set up.
        loss_unit: what the method's loss is a mean over.
    """

    def __init__(self, corpus: Corpus, *, loss_unit: LossUnit = LossUnit.TOKEN) -> None:
        super().__init__()
        self.corpus = corpus
        self.loss_unit = loss_unit
        self.packing = corpus.packing  # switched off for models whose attention cannot be packed

    def train_dataloader(self) -> StepLoader:
        """A loader whose items are optimizer steps: lists of micro-batches."""
        return StepLoader(
            self.corpus.rows,
            num_steps=self.corpus.max_steps,
            epochs=self.corpus.epochs,
            global_batch_size=self.corpus.global_batch_size,
            micro_batch_size=self.corpus.micro_batch_size,
            micro_batch_tokens=self.corpus.micro_batch_tokens,
            packing=self.packing,
            pad_token_id=self.pad_token_id,
            seed=self.corpus.seed,
            shuffle=self.corpus.shuffle,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            loss_unit=self.loss_unit,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move every micro-batch of a step; Lightning does not know the dataclass."""
        if device.type == "cpu":  # where they were made
            return batch
        return [micro_batch.to(device) for micro_batch in batch]

    @property
    def pad_token_id(self) -> int:
        """Fills padded batches; it is masked everywhere, so a tokenizer without one loses nothing by id 0."""
        for token in (self.corpus.tokenizer.pad_token_id, self.corpus.tokenizer.eos_token_id, 0):
            if isinstance(token, int):
                return token
        raise NexusError("E-TOK-03", "the tokenizer's pad and eos tokens are not single tokens", where="base_model")

    def held_out_batches(self) -> list[MicroBatch]:
        """Held-out rows, one a micro-batch (rows are what is independent), or pairs; empty if there are none."""
        rows = self.corpus.held_out_rows
        if any(isinstance(row, TokenizedGroup) for row in rows):
            return self.group_batches(rows)
        total = sum(row.num_target_tokens for row in rows)
        return [
            collate_micro_batch(
                [row],
                packing=self.packing,
                pad_token_id=self.pad_token_id,
                loss_scale=row.num_target_tokens / total,
            )
            for row in rows
        ]

    def validation_batches(self, max_rows: int | None) -> list[MicroBatch]:
        """Held-out rows for measurements while training, in micro-batches as large as a step's.

        Args:
            max_rows: how many at most, taken evenly from all of them; None is no limit.

        Returns:
            Micro-batches.
        """
        rows = self.corpus.held_out_rows
        count = len(rows) if max_rows is None else min(max_rows, len(rows))
        return collate_step(
            [rows[index * len(rows) // count] for index in range(count)],
            packing=self.packing,
            micro_batch_size=self.corpus.micro_batch_size,
            micro_batch_tokens=self.corpus.micro_batch_tokens,
            pad_token_id=self.pad_token_id,
            world_size=1,
        )

    def group_batches(self, groups: Sequence[AnyRow]) -> list[MicroBatch]:
        """Micro-batches over groups in their own order, as large as in training.

        Args:
            groups: any number.

        Returns:
            Micro-batches, the groups one after the other.
        """
        rows, tokens = self.corpus.micro_batch_size, self.corpus.micro_batch_tokens
        parts: list[list[Any]] = []
        filled = 0
        for group in groups:
            size = row_tokens(group, packing=self.packing)
            full = not parts or len(parts[-1]) == rows or (tokens is not None and filled + size > tokens)
            if full:
                parts.append([])
            parts[-1].append(group)
            filled = size if full else filled + size
        return [
            collate_micro_batch(
                part,
                packing=self.packing,
                pad_token_id=self.pad_token_id,
                loss_scale=len(part) / len(groups),
                loss_unit=LossUnit.GROUP,
            )
            for part in parts
        ]
