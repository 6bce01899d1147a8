"""Direct preference optimization, in the forms of `functional.dpo.DPOForm`, length-normalized or not."""

from __future__ import annotations

from typing import Any

from nexus.functional.dpo import DPOForm, dpo_loss, with_imitation
from nexus.functional.preference import pair_lengths, pair_values
from nexus.methods.base import Method
from nexus.models.head import completion_logprobs
from nexus.types import LossOutput, LossUnit, MicroBatch


class DPO(Method):
    """Prefer the chosen completion by more than the reference does.

    The reference is the policy as its phase began; its log-probabilities are computed once, before training.

    Args:
        form: what is done with the margin, a value of `DPOForm`.
        beta: strength of the bond to the reference.
        label_smoothing: believed share of flipped labels, for the forms conservative and robust.
        length_normalized: whether each log-ratio is divided by the tokens of its completion.
        sft_weight: weight of the likelihood of the chosen completion beside the preference; 0 leaves it out.
        chunk_size: target positions whose logits exist at one time.
        **common: arguments of `Method`.
    """

    loss_unit = LossUnit.GROUP
    needs_reference = True

    def __init__(
        self,
        *,
        form: str,
        beta: float,
        label_smoothing: float,
        length_normalized: bool,
        sft_weight: float,
        chunk_size: int,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.form = DPOForm(form)
        self.beta = beta
        self.label_smoothing = label_smoothing
        self.length_normalized = length_normalized
        self.sft_weight = sft_weight
        self.chunk_size = chunk_size

    def loss(self, batch: MicroBatch) -> LossOutput:
        """Log-probabilities of both completions, with those of the reference beside them."""
        chosen, rejected = pair_values(completion_logprobs(self.policy, batch, chunk_size=self.chunk_size))
        ref_chosen, ref_rejected = pair_values(batch.completion_values["ref_logprobs"])
        lengths = pair_lengths(batch)
        output = dpo_loss(
            chosen_logprobs=chosen,
            rejected_logprobs=rejected,
            ref_chosen_logprobs=ref_chosen,
            ref_rejected_logprobs=ref_rejected,
            form=self.form,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            chosen_lengths=lengths[0] if self.length_normalized else None,
            rejected_lengths=lengths[1] if self.length_normalized else None,
        )
        if not self.sft_weight:
            return output
        return with_imitation(output=output, chosen_logprobs=chosen, chosen_lengths=lengths[0], weight=self.sft_weight)
