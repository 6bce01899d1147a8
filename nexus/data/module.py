"""The data module: a corpus that hands out optimizer steps."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from nexus.data.collate import collate_micro_batch
from nexus.data.corpus import Corpus
from nexus.data.stream import StepLoader
from nexus.errors import NexusError
from nexus.types import MicroBatch


class NexusDataModule(Corpus, LightningDataModule):
    """Loaders over the rows of one training phase.

    Args:
        **settings: arguments of `Corpus`.
    """

    def __init__(self, **settings: Any) -> None:
        LightningDataModule.__init__(self)
        Corpus.__init__(self, **settings)

    def train_dataloader(self) -> StepLoader:
        """A loader whose items are optimizer steps: lists of micro-batches."""
        return StepLoader(
            self.rows,
            num_steps=self.max_steps,
            epochs=self.epochs,
            global_batch_size=self.global_batch_size,
            micro_batch_size=self.micro_batch_size,
            micro_batch_tokens=self.micro_batch_tokens,
            packing=self.packing,
            pad_token_id=self.pad_token_id,
            seed=self.seed,
            shuffle=self.shuffle,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )

    @property
    def pad_token_id(self) -> int:
        """Fills padded batches; it is masked everywhere, so a tokenizer without one loses nothing by id 0."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0):
            if isinstance(token, int):
                return token
        raise NexusError("E-TOK-03", "the tokenizer's pad and eos tokens are not single tokens", where="base_model")

    def held_out_batches(self) -> list[MicroBatch]:
        """Held-out rows, one a micro-batch (rows are what is independent); empty if there are none."""
        total = sum(row.num_target_tokens for row in self.held_out_rows)
        return [
            collate_micro_batch(
                [row], packing=self.packing, pad_token_id=self.pad_token_id, loss_scale=row.num_target_tokens / total
            )
            for row in self.held_out_rows
        ]
