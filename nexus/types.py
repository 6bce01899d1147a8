"""The dataclasses that travel between the floors; every tensor field states its shape.

Masks are True where a position counts. `labels` hold `IGNORE_INDEX` where nothing is learned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE_INDEX = -100
#: Logits of a chunk on a processor at most, 256 MiB in float32; a memory plan must know them too.
CHUNK_LOGITS = 2**26
#: Logits of a block of rows that are read together, by kind of device: few enough for a processor's cache, enough for
#: a GPU's launches to pay.
BLOCK_LOGITS = {"cpu": 2**20, "cuda": 2**24}

Message = dict[str, Any]
"""One chat turn: `role`, `content`, and for tools `tool_calls` or `name`/`tool_call_id`."""


@dataclass(frozen=True)
class Example:
    """One row after `data.formats` recognized its schema.

    Attributes:
        id: stable name of the row, for example `file.jsonl:12`.
        source: name of the data source that it came from.
        messages: chat turns including the answer(s) (view `sft`), or the prompt alone (views `prompts`, `preference`).
        text: raw text instead of messages (every token counts).
        tools: JSON-schema function definitions offered to the model.
        chosen: preferred completion turns (view `preference`).
        rejected: other completion turns (view `preference`).
        margin: how much better `chosen` is, at least 0; None where the row does not say (view `preference`).
        gold: what metrics and rewards compare with (view `prompts`).
    """

    id: str
    source: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    margin: float | None = None
    gold: dict[str, Any] | None = None


@dataclass(frozen=True)
class TokenizedExample:
    """One row as tokens.

    Attributes:
        id: as in `Example`.
        source: as in `Example`.
        input_ids: token ids, length T.
        loss_mask: True where the token is learned, length T.
    """

    id: str
    source: str
    input_ids: list[int]
    loss_mask: list[bool]

    @property
    def num_target_tokens(self) -> int:
        """Tokens that count; the first token of a row has no predecessor and never does."""
        return sum(self.loss_mask[1:])


@dataclass(frozen=True)
class TokenizedGroup:
    """A prompt and the completions that are trained together: a pair, or the samples of one prompt.

    Attributes:
        id: as in `Example`.
        source: as in `Example`.
        prompt_ids: token ids of the prompt, at least one.
        completions: token ids of each completion; every group of a data set has as many, a pair chosen and rejected.
        loss_masks: True where a token of the completion counts, for each completion.
        values: one number per completion by name; they become `MicroBatch.completion_values`.
        token_values: one number per counted token of each completion by name; `MicroBatch.target_values`.
    """

    id: str
    source: str
    prompt_ids: list[int]
    completions: tuple[list[int], ...]
    loss_masks: tuple[list[bool], ...]
    values: dict[str, tuple[float, ...]] = field(default_factory=dict)
    token_values: dict[str, tuple[list[float], ...]] = field(default_factory=dict)

    @property
    def input_ids(self) -> list[int]:
        """What is computed: the prompt once, then all completions."""
        return [*self.prompt_ids, *(token for ids in self.completions for token in ids)]

    @property
    def loss_mask(self) -> list[bool]:
        """True where a token of `input_ids` counts."""
        return [*([False] * len(self.prompt_ids)), *(counts for mask in self.loss_masks for counts in mask)]

    @property
    def num_target_tokens(self) -> int:
        """Tokens that count, of all completions."""
        return sum(map(sum, self.loss_masks))


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt that is answered while training, with all that rewards may read.

    Attributes:
        id: as in `Example`.
        source: as in `Example`.
        input_ids: token ids, the generation prompt included.
        example: the row itself: turns, tools and gold.
    """

    id: str
    source: str
    input_ids: list[int]
    example: Example

    @property
    def loss_mask(self) -> list[bool]:
        """Nothing of a prompt is learned."""
        return [False] * len(self.input_ids)

    @property
    def num_target_tokens(self) -> int:
        """None of its own; its answers bring them."""
        return 0


class LossUnit(StrEnum):
    """What a method's loss is a mean over, hence what `MicroBatch.loss_scale` is a share of.

    TOKEN: target tokens.
    GROUP: groups. All groups have the same number of completions, so this is the share of completions too.
    """

    TOKEN = "token"
    GROUP = "group"


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass consumes.

    Packed, B is 1 and the rows lie one after the other; unpacked, rows are padded on the right. A group is what no
    split may part: a single row, or the completions of one prompt. Its first row is then the prompt, which the others
    continue (`shares_prompt`), or every row repeats the prompt. `targets` lie completion after completion.

    Attributes:
        input_ids: [B, T] int64.
        position_ids: [B, T] int64, restarting at 0 for every row, but going on from a shared prompt.
        attention_mask: [B, T] bool, True for real tokens; None when packed.
        segments: (start, end) of each row in the flat sequence, shared prompts included; empty when not packed.
        labels: [B, T] int64, `IGNORE_INDEX` where nothing is learned.
        target_positions: [N] int64, flat indices into B*T of the hidden states that predict a target.
        targets: [N] int64, the tokens to predict there.
        loss_scale: this micro-batch's share of the units of its optimizer step (times the number of ranks), so that
            the sum of `loss * loss_scale` over a step is the mean over the step's units.
        num_tokens: real tokens (no padding); a shared prompt counts once.
        num_target_tokens: N.
        ids: names of the groups, for error messages.
        loss_unit: what `loss_scale` counts.
        completion_lengths: target tokens of each of the R completions.
        completions_per_group: completions of each group, 1 if rows stand alone.
        shares_prompt: whether each group's first segment is a prompt that its other segments continue.
        completion_values: [R, ...] tensors by name, for example log-probabilities under the reference.
        target_values: [N, ...] tensors by name, for example log-probabilities when the tokens were sampled.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[tuple[int, int], ...]
    labels: Tensor
    target_positions: Tensor
    targets: Tensor
    loss_scale: float
    num_tokens: int
    num_target_tokens: int
    ids: tuple[str, ...] = ()
    loss_unit: LossUnit = LossUnit.TOKEN
    completion_lengths: tuple[int, ...] = ()
    completions_per_group: int = 1
    shares_prompt: bool = False
    completion_values: dict[str, Tensor] = field(default_factory=dict)
    target_values: dict[str, Tensor] = field(default_factory=dict)

    @property
    def num_groups(self) -> int:
        """Groups, below which nothing is split."""
        rows = len(self.segments) or self.input_ids.shape[0]
        return rows // (self.completions_per_group + self.shares_prompt)

    def to(self, device: torch.device | str) -> MicroBatch:
        """Copy with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: move(inner) for name, inner in value.items()}
            return value.to(device, non_blocking=True) if hasattr(value, "to") else value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class LossOutput:
    """What every loss function returns.

    Attributes:
        loss: scalar tensor with gradient.
        metrics: detached scalar tensors by log name; they stay on the device until a logging step.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """One sampled answer.

    Attributes:
        token_ids: generated ids without the prompt, including the stop token if there was one.
        text: decoded answer, special tokens kept (tool and think tags are special tokens), stop token removed.
        logprobs: log-probability of each generated token under the sampling distribution.
        finished: True if a stop token ended it, False if the token limit did.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    finished: bool


@dataclass(frozen=True)
class Score:
    """A measured value.

    Attributes:
        value: the mean.
        n: how many prompts or rows it was measured on; they, not their tokens, are independent.
        ci95: 95 % confidence interval; None if a single row leaves nothing to tell its spread from.
    """

    value: float
    n: int
    ci95: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain containers, as they stand in `report.json`."""
        return {"value": self.value, "n": self.n, "ci95": None if self.ci95 is None else list(self.ci95)}


@dataclass(frozen=True)
class ModelFacts:
    """What can be known about a folder of weights without loading it: `config.json` and the safetensors headers.

    Attributes:
        path: the folder; empty for an architecture that starts from random weights.
        model_type: as in transformers.
        num_parameters: elements over all stored tensors; a tied head counts once.
        parameters_by_dtype: elements by safetensors dtype name, for example `{"F32": 2500000}`.
        num_bytes: bytes of the tensors as stored.
        num_layers: decoder layers.
        hidden_size: width of the residual stream, D.
        intermediate_size: width of the feed-forward layers.
        num_heads: query heads.
        num_kv_heads: key and value heads.
        head_dim: width of one head.
        vocab_size: rows of the input embedding, V.
        max_position_embeddings: longest sequence the model was made for, in tokens.
        sliding_window: last tokens that local attention sees; None for full attention.
        tied: True if the output head is the input embedding.
    """

    path: str
    model_type: str
    num_parameters: int
    parameters_by_dtype: dict[str, int]
    num_bytes: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    sliding_window: int | None
    tied: bool
