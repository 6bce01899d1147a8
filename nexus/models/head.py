"""From a batch to hidden states, and from hidden states to logits, without computing logits that nobody reads.

`hidden @ weight.T + bias`, then the model's `LogitForm`, equals the model's own logits. The table below knows which
config key means what for which model type (`logits_scaling` multiplies in one family and divides in another); the
probe at load is the safety: whatever does not come out equal is refused.

Signatures:
    target_logprobs(model, batch, *, chunk_size, temperature=1.0, with_entropies=False) -> TokenLogprobs
    hidden_logprobs(model, hidden, targets, *, chunk_size, temperature=1.0, with_entropies=False) -> TokenLogprobs
    completion_logprobs(model, batch, *, chunk_size) -> Tensor [R]
    target_hidden_states(model, batch) -> Tensor [N, D]
    hidden_states(model, batch) -> Tensor [B, T, D]
    output_head(model) -> OutputHead(weight, bias)
    LogitForm.of(model) -> LogitForm(scale, softcap, hidden_scale)
    probe_head(model) -> None, raises E-MOD-12 or E-NUM-05
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from nexus.errors import NexusError
from nexus.functional.completions import completion_sums
from nexus.functional.logprobs import TokenLogprobs, linear_token_logprobs
from nexus.hardware.memory_parts import LARGE_TABLE
from nexus.hardware.processor import give_memory_back
from nexus.models.attention import make_plan, packed, packed_inputs
from nexus.models.neftune import rows_of
from nexus.types import MicroBatch

_SOFTCAP = {
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"), "final_logit_softcapping"),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "vaultgemma", "nanochat"), "final_logit_softcapping"),
    "recurrent_gemma": "logits_soft_cap",
}
_MULTIPLY = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), "logit_scale"),
    "hyperclovax": "logits_scaling",
    "falcon_h1": "lm_head_multiplier",
}
_DIVIDE = dict.fromkeys(("granite", "granitemoe", "granitemoehybrid", "granitemoeshared"), "logits_scaling")
_DIVIDE_HIDDEN = {"minicpm3": "logits_scaling"}


def text_model(model: Any) -> Any:
    """The transformers model inside an optional PEFT wrapper.

    Args:
        model: a `PreTrainedModel` or a `PeftModel`.

    Returns:
        The `PreTrainedModel`, adapter layers still inside.
    """
    # asked of the class, since a module that lacks an attribute takes its time to say so
    return model.get_base_model() if hasattr(type(model), "get_base_model") else model


@dataclass(frozen=True)
class LogitForm:
    """What a model does besides its linear head.

    Attributes:
        scale: factor on the logits.
        softcap: bound c of `c * tanh(z / c)`, applied after the factor; None for no bound.
        hidden_scale: factor on the hidden states.
    """

    scale: float = 1.0
    softcap: float | None = None
    hidden_scale: float = 1.0

    @classmethod
    def of(cls, model: Any) -> LogitForm:
        """Read the form from a model's config.

        Args:
            model: a `PreTrainedModel` or a `PeftModel`.

        Returns:
            The form; the identity for types that the table does not know.
        """
        known = _FORMS.get(model)
        if known is not None:
            return known
        config = text_model(model).config.get_text_config()
        kind = config.model_type

        def read(table: dict[str, str], neutral: float | None) -> Any:
            return getattr(config, table[kind]) if kind in table else neutral

        scale = float(read(_MULTIPLY, 1.0)) / float(read(_DIVIDE, 1.0))
        cap = read(_SOFTCAP, None)
        _FORMS[model] = form = cls(
            scale=scale,
            softcap=None if cap is None else float(cap),
            hidden_scale=1.0 / float(read(_DIVIDE_HIDDEN, 1.0)),
        )
        return form

    def apply(self, logits: Tensor) -> Tensor:
        """Scale and cap plain logits of scaled hidden states.

        Args:
            logits: [..., V].

        Returns:
            [..., V], the model's logits.
        """
        logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


#: By model, whose config stays; it is asked for in every step.
_FORMS: WeakKeyDictionary[Any, LogitForm] = WeakKeyDictionary()


@dataclass(frozen=True)
class OutputHead:
    """The linear head.

    Attributes:
        weight: [V, D].
        bias: [V] or None.
    """

    weight: Tensor
    bias: Tensor | None


def output_head(model: Any) -> OutputHead:
    """The head's current parameters (not a copy).

    Args:
        model: a `PreTrainedModel` or a `PeftModel`.

    Returns:
        Weight and bias.

    Raises:
        NexusError: `E-MOD-12` if the head is more than a linear layer, for example wrapped by an adapter.
    """
    head = text_model(model).get_output_embeddings()
    if type(head) is not nn.Linear:
        raise NexusError(
            "E-MOD-12",
            f"the output head is {type(head).__name__}, not a plain linear layer",
            where="adapter.target_modules" if hasattr(model, "peft_config") else type(model).__name__,
            remedy="leave the output head out of the adapter's target_modules"
            if hasattr(model, "peft_config")
            else "choose a decoder with a linear head",
        )
    return OutputHead(weight=head.weight, bias=head.bias)


def hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """Run the body (adapter included) and stop before the head.

    Args:
        model: a `PreTrainedModel` with segment attention, or a `PeftModel` around one.
        batch: packed (segments, no mask) or padded.

    Returns:
        [B, T, D], after the final norm.

    Raises:
        ValueError: if the segments do not cover the packed sequence.
    """
    body = text_model(model).base_model
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
    packs = bool(batch.segments)
    if packs and batch.segments[-1][1] != batch.input_ids.shape[1]:
        raise ValueError(f"segments end at {batch.segments[-1][1]}, the sequence at {batch.input_ids.shape[1]}")
    with packed() if packs else nullcontext(), rows_of(batch):
        completions = batch.completions_per_group if batch.shares_prompt else 0
        inputs |= (
            packed_inputs(batch.input_ids, make_plan(batch.segments, completions))
            if packs
            else {"attention_mask": batch.attention_mask}
        )
        output = body(**inputs)
    return cast(Tensor, output.last_hidden_state)


def target_hidden_states(model: Any, batch: MicroBatch) -> Tensor:
    """Hidden states of the positions that predict a target.

    Args:
        model: as in `hidden_states`.
        batch: as in `hidden_states`.

    Returns:
        [N, D], in the order of `batch.targets`.
    """
    hidden = hidden_states(model, batch).flatten(0, 1).index_select(0, batch.target_positions)
    if hidden.device.type == "cpu" and hidden.requires_grad:
        table = text_model(model).get_input_embeddings().weight
        if table.numel() >= LARGE_TABLE:
            give_memory_back()  # a step's largest tensors come next
    return hidden


def target_logprobs(
    model: Any, batch: MicroBatch, *, chunk_size: int, temperature: float = 1.0, with_entropies: bool = False
) -> TokenLogprobs:
    """Log-probabilities of a micro-batch's targets, with gradient unless grad mode is off; no full logits exist.

    Args:
        model: as in `hidden_states`.
        batch: as in `hidden_states`.
        chunk_size: target positions whose logits exist at one time.
        temperature: of the distribution; 1 is the model's own.
        with_entropies: also compute entropies.

    Returns:
        Log-probabilities [N] and, if asked for, entropies [N], in the order of `batch.targets`.
    """
    return hidden_logprobs(
        model,
        target_hidden_states(model, batch),
        batch.targets,
        chunk_size=chunk_size,
        temperature=temperature,
        with_entropies=with_entropies,
    )


def hidden_logprobs(
    model: Any,
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk_size: int,
    temperature: float = 1.0,
    with_entropies: bool = False,
) -> TokenLogprobs:
    """As `target_logprobs`, for hidden states that are at hand because another head reads them too.

    Args:
        model: as in `hidden_states`.
        hidden: [N, D], as `target_hidden_states` gives them.
        targets: [N] int64.
        chunk_size: as in `target_logprobs`.
        temperature: as in `target_logprobs`.
        with_entropies: as in `target_logprobs`.

    Returns:
        Log-probabilities [N] and, if asked for, entropies [N].
    """
    head, form = output_head(model), LogitForm.of(model)
    return linear_token_logprobs(
        hidden=hidden if form.hidden_scale == 1.0 else hidden * form.hidden_scale,
        weight=head.weight,
        bias=head.bias,
        targets=targets,
        chunk_size=chunk_size,
        logit_scale=form.scale,
        softcap=form.softcap,
        temperature=temperature,
        with_entropies=with_entropies,
    )


def completion_logprobs(model: Any, batch: MicroBatch, *, chunk_size: int) -> Tensor:
    """Log-probability of each completion as a whole, the sum over its target tokens.

    Args:
        model: as in `hidden_states`.
        batch: as in `hidden_states`.
        chunk_size: as in `target_logprobs`.

    Returns:
        [R] float32, with gradient unless grad mode is off; of pairs chosen and rejected in turn.
    """
    made = target_logprobs(model, batch, chunk_size=chunk_size)
    return completion_sums(values=made.logprobs, lengths=batch.completion_lengths)


def probe_head(model: Any) -> None:
    """Check on 6 tokens that hidden states, head and form give the model's own logits.

    Catches types that the table does not know, heads with extra layers and vocabulary cuts. Leaves the model as it is.

    Args:
        model: a `PreTrainedModel`.

    Raises:
        NexusError: `E-MOD-12` if they differ or there are no hidden states to be had; `E-NUM-05` if the logits are not
            finite.
    """
    base = text_model(model)
    if base.base_model is base:
        raise NexusError(
            "E-MOD-12",
            f"{type(base).__name__} does not say which part of it comes before its head",
            where=f"model_type {base.config.model_type}",
            remedy="choose another base_model",
        )
    head, form = output_head(model), LogitForm.of(model)
    device = head.weight.device
    vocab = base.get_input_embeddings().num_embeddings
    ids = torch.randint(vocab, (1, 6), generator=torch.Generator().manual_seed(0)).to(device)
    was_training = base.training
    base.eval()
    try:
        with torch.no_grad():
            expected = base(input_ids=ids, use_cache=False).logits.float()
            hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state * form.hidden_scale
            actual = form.apply(nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float())
    finally:
        base.train(was_training)
    if not expected.isfinite().all():
        raise NexusError(
            "E-NUM-05",
            f"the logits of {type(base).__name__} are not finite numbers",
            where=f"model_type {base.config.model_type}",
            remedy="its weights are damaged, or their training diverged: train again with a lower method.lr",
        )
    # float32 agrees to 1e-6; bfloat16 rounds each logit to 8 bits
    limit = (1e-3 if head.weight.dtype == torch.float32 else 4e-2) * expected.abs().max().clamp(min=1e-3)
    if expected.shape != actual.shape or not ((expected - actual).abs().max() <= limit):
        raise NexusError(
            "E-MOD-12",
            f"{type(base).__name__} does more than a linear layer between its hidden states and its logits",
            where=f"model_type {base.config.model_type}",
            remedy="choose another base_model; this type needs an entry in nexus/models/head.py",
        )
