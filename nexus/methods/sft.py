"""Supervised fine-tuning; with every token counted it is continued pre-training (`method=cpt`)."""

from __future__ import annotations

from typing import Any

from nexus.functional.sft import sft_loss
from nexus.methods.base import Method
from nexus.models.head import LogitForm, output_head, target_hidden_states
from nexus.types import LossOutput, MicroBatch


class SFT(Method):
    """Mean cross-entropy of the tokens that count, given everything before them.

    Which tokens count is the data's matter (`method.count_tokens`): the loss sees target positions only, and no logits
    are ever computed for the others.

    Args:
        chunk_size: target positions whose logits exist at one time.
        **common: arguments of `Method`.
    """

    def __init__(self, *, chunk_size: int, **common: Any) -> None:
        super().__init__(**common)
        self.chunk_size = chunk_size

    def loss(self, batch: MicroBatch) -> LossOutput:
        """Hidden states at the target positions, then head and loss in one fused function."""
        hidden = target_hidden_states(self.policy, batch)  # [N, D]
        head = output_head(self.policy)
        return sft_loss(
            hidden=hidden,
            weight=head.weight,
            bias=head.bias,
            targets=batch.targets,
            form=LogitForm.of(self.policy),
            chunk_size=self.chunk_size,
        )
