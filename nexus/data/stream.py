"""The step loader: which rows an optimizer step sees is a formula of (seed, step), so a resumed run sees the same.

Lightning stores a plain loader's position nowhere, and counts one batch too many for a loader without length; so this
one has a length, and its state is the number of steps handed out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from nexus.data.collate import Rows, collate_step
from nexus.data.mixture import count_steps
from nexus.types import LossUnit, MicroBatch


def epoch_order(num_rows: int, *, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Order of the rows in one epoch, from nothing but the arguments.

    Args:
        num_rows: rows of the data set.
        seed: seed of the run.
        epoch: index of the epoch.
        shuffle: False keeps the order of the files.

    Returns:
        A permutation of `range(num_rows)`.
    """
    order = list(range(num_rows))
    if shuffle:
        random.Random(f"nexus/{seed}/{epoch}").shuffle(order)
    return order


class StepLoader:
    """Iterates over optimizer steps; one item is the list of this rank's micro-batches of one step.

    Epochs follow each other without a gap in the step count; the last step of an epoch may have fewer rows, so that
    none is lost.

    Args:
        rows: the data set, the same on every rank.
        num_steps: steps of the whole phase; None means all epochs.
        epochs: times that the rows are seen; None means as often as `num_steps` needs.
        global_batch_size: rows of a step over all ranks.
        micro_batch_size: rows of a micro-batch; None is no limit.
        micro_batch_tokens: tokens of a micro-batch, padding included; None is no limit.
        packing: lay rows one after the other instead of padding them.
        pad_token_id: fills short rows.
        seed: seed of the order.
        shuffle: new order every epoch; False keeps the rows' own.
        rank: index of this rank.
        world_size: number of ranks.
        loss_unit: what the method's loss is a mean over.

    Raises:
        ValueError: without rows, or when neither steps nor epochs are given.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        num_steps: int | None,
        epochs: float | None,
        global_batch_size: int,
        micro_batch_size: int | None,
        micro_batch_tokens: int | None,
        packing: bool,
        pad_token_id: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        loss_unit: LossUnit = LossUnit.TOKEN,
    ) -> None:
        if not rows:
            raise ValueError("no rows")
        self.rows = rows
        self.num_steps = count_steps(len(rows), global_batch_size=global_batch_size, epochs=epochs, max_steps=num_steps)
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.packing = packing
        self.pad_token_id = pad_token_id
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.loss_unit = loss_unit
        self.consumed = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Steps of the whole phase, also after a resume."""
        return self.num_steps

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """The steps that are left; after the last one the loader starts over."""
        if self.consumed >= self.num_steps:
            self.consumed = 0
        while self.consumed < self.num_steps:
            step = self.consumed
            self.consumed += 1  # before the yield: a checkpoint inside this step's boundary counts it as done
            yield self.micro_batches(step)

    def step_rows(self, step: int) -> Rows:
        """The rows of all ranks that optimizer step `step` (from 0) trains on."""
        steps_per_epoch = math.ceil(len(self.rows) / self.global_batch_size)
        epoch, index = divmod(step, steps_per_epoch)
        if self._order[0] != epoch:
            order = epoch_order(len(self.rows), seed=self.seed, epoch=epoch, shuffle=self.shuffle)
            self._order = (epoch, order)
        first = index * self.global_batch_size
        return [self.rows[i] for i in self._order[1][first : first + self.global_batch_size]]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of optimizer step `step` (from 0)."""
        return collate_step(
            self.step_rows(step),
            packing=self.packing,
            micro_batch_size=self.micro_batch_size,
            micro_batch_tokens=self.micro_batch_tokens,
            pad_token_id=self.pad_token_id,
            world_size=self.world_size,
            rank=self.rank,
            loss_unit=self.loss_unit,
        )

    def state_dict(self) -> dict[str, int]:
        """Steps handed out so far; Lightning puts it into the checkpoint."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the steps that a checkpoint counted."""
        self.consumed = state["consumed"]
