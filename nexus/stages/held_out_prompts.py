"""The held-out prompts that a model is scored on: those that leave room for an answer in its context. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nexus.data.template import encode_prompts
from nexus.errors import NexusError
from nexus.stages import planning
from nexus.types import Example

if TYPE_CHECKING:
    from nexus.stages.prepare import Prepared


def held_out_prompts(
    config: dict[str, Any], prepared: Prepared, *, tell: Callable[[str], None] | None
) -> dict[str, list[Example]]:
    """Held-out prompts by capability; none for a reward model.

    Args:
        config: checked and resolved.
        prepared: facts, tokenizer and corpus.
        tell: takes a line for each capability of which prompts are left out; None says nothing.

    Returns:
        The prompts. With `data.long_rows=drop` those without room are left out; they are then in no score.

    Raises:
        NexusError: `E-LEN-05` for a prompt that leaves no room, and where none is left; as the readers.
    """
    context = prepared.facts.max_position_embeddings
    found: dict[str, list[Example]] = {}
    for name, entry in config["capabilities"].items() if planning.answers_prompts(config) else ():
        examples, answer = prepared.corpus.eval_prompts(name), int(entry["max_new_tokens"])
        lengths = [len(ids) for ids in encode_prompts(prepared.tokenizer, examples)]
        kept = [row for row, length in zip(examples, lengths, strict=True) if length + answer <= context]
        if len(kept) < len(examples):
            if config["data"]["long_rows"] != "drop" or not kept:
                raise _no_room(name, examples, lengths, answer, context)
            if tell is not None:
                tell(
                    f"W-LEN-05  capabilities.{name}: {len(examples) - len(kept)} of {len(examples)} held-out prompts "
                    f"leave no room for an answer of {answer} tokens in {context:,} positions and are not scored"
                )
        found[name] = kept
    return found


def _no_room(name: str, examples: list[Example], lengths: list[int], answer: int, context: int) -> NexusError:
    worst = max(range(len(lengths)), key=lengths.__getitem__)
    count = sum(length + answer > context for length in lengths)
    return NexusError(
        "E-LEN-05",
        f"{count} of {len(examples)} held-out prompts leave no room for an answer of {answer} tokens within the "
        f"{context:,} positions that the model knows, the longest has {lengths[worst]:,} tokens",
        where=f"capabilities.{name}, {examples[worst].id}",
        remedy=f"a lower capabilities.{name}.max_new_tokens, base_model.rope for a longer context, or "
        "data.long_rows=drop, which scores the others alone",
    )
