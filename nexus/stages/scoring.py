"""Measures a model: capabilities by answering held-out prompts, own data by held-out loss."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nexus.data.template import encode_prompts
from nexus.evaluation.held_out import held_out_loss
from nexus.evaluation.preference import preference_accuracy, reward_accuracy
from nexus.evaluation.streaming import measure_streaming
from nexus.evaluation.suites import SUITES, aggregate
from nexus.rollout.environment import converse, make_environment
from nexus.rollout.generate import generate
from nexus.types import Example, Generation, MicroBatch, Score

if TYPE_CHECKING:
    from torch import Tensor

Scores = dict[str, dict[str, Score]]
"""Group (a capability, `held_out` or `preference`), then metric."""


@dataclass(frozen=True)
class Speed:
    """How long one group took.

    Attributes:
        seconds: wall time, from the first prompt to the last score.
        rows: prompts or rows.
        input_tokens: of the prompts, or of the rows.
        output_tokens: generated; 0 where nothing is.
        first_token_seconds: until the first generated token of the first batch; None where nothing is generated.
    """

    seconds: float
    rows: int
    input_tokens: int
    output_tokens: int
    first_token_seconds: float | None


@dataclass
class Scoring:
    """Scores with the answers that they rest on.

    Attributes:
        scores: group, then metric.
        answers: one plain row per prompt: capability, id, answer, finished, and its metric values.
        speeds: group to the time that it took; groups that measure time themselves are not in it.
        seconds: how long it took.
    """

    scores: Scores = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    speeds: dict[str, Speed] = field(default_factory=dict)
    seconds: float = 0.0


def score_model(
    *,
    model: Any,
    tokenizer: Any,
    capabilities: Mapping[str, Mapping[str, Any]],
    prompts: Mapping[str, Sequence[Example]],
    held_out: Sequence[MicroBatch],
    batch_size: int,
    tell: Callable[[str], None],
    rewards: Callable[[MicroBatch], Tensor] | None = None,
) -> Scoring:
    """Greedy answers for every capability's prompts (or their timing), and loss or preference on held-out rows.

    Args:
        model: left in the mode (training or not) that it came in.
        tokenizer: encodes prompts and decodes answers.
        capabilities: settings by name: `metrics` (suite), `max_new_tokens` and `environment`.
        prompts: held-out prompts with gold answers by capability.
        held_out: micro-batches of held-out rows, or of held-out pairs; empty if there are none.
        batch_size: prompts that are answered together.
        tell: takes lines of progress.
        rewards: of a reward model, gives its rewards of a micro-batch's completions, by which held-out pairs are
            judged; None goes by their likelihood.

    Returns:
        Scores, and the answers that they rest on.
    """
    started = time.perf_counter()
    result = Scoring()
    was_training = model.training
    model.eval()
    for name, examples in prompts.items():
        settings = capabilities[name]
        encoded = encode_prompts(tokenizer, examples)
        if settings["metrics"] == "streaming":
            tell(f"  {name}: streaming {len(examples)} answers of {settings['max_new_tokens']} tokens, one at a time")
            measured = measure_streaming(
                model=model, tokenizer=tokenizer, prompts=encoded, max_new_tokens=settings["max_new_tokens"]
            )
            result.scores[name] = measured.scores
            continue
        suite = SUITES[settings["metrics"]]
        tell(f"  {name}: answering {len(examples)} held-out prompts")
        clock = _FirstToken()
        conversations = converse(
            answer=functools.partial(_greedy, model=model, tokenizer=tokenizer, batch_size=batch_size, clock=clock),
            tokenizer=tokenizer,
            prompts=encoded,
            tools=[example.tools for example in examples],
            environment=make_environment(settings["environment"]),
            max_new_tokens=settings["max_new_tokens"],
        )
        values = []
        for example, said in zip(examples, conversations, strict=True):
            row = {"gold": example.gold, "tools": list(example.tools), "prompt": list(example.messages)}
            values.append(suite.score(row | {"turns": said.turns}, said.text, finished=said.finished))
            result.answers.append(
                {"capability": name, "id": example.id, "answer": said.text, "finished": said.finished} | values[-1]
            )
        result.scores[name] = aggregate(values)
        result.speeds[name] = Speed(
            seconds=time.perf_counter() - clock.started,
            rows=len(examples),
            input_tokens=sum(map(len, encoded)),
            output_tokens=sum(sum(said.loss_mask) for said in conversations),
            first_token_seconds=clock.seconds,
        )
    if held_out:
        _score_held_out(result, model, held_out, rewards, tell)
    model.train(was_training)
    result.seconds = time.perf_counter() - started
    return result


def _greedy(
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    turn: int,
    limit: int,
    *,
    model: Any,
    tokenizer: Any,
    batch_size: int,
    clock: _FirstToken,
) -> list[Generation]:
    """The likeliest answers, whichever rows and turn they belong to."""
    return generate(
        model=model,
        tokenizer=tokenizer,
        prompts=prompts,
        max_new_tokens=limit,
        temperature=0.0,
        seeds=[0] * len(rows),
        batch_size=batch_size,
        on_token=clock,
    )


def _score_held_out(
    result: Scoring,
    model: Any,
    held_out: Sequence[MicroBatch],
    rewards: Callable[[MicroBatch], Tensor] | None,
    tell: Callable[[str], None],
) -> None:
    """Add the loss on held-out rows, or the preference between held-out pairs."""
    rows = sum(len(batch.ids) for batch in held_out)
    pairs = held_out[0].completions_per_group == 2
    group = "preference" if pairs else "held_out"
    tell(f"  preference of {rows} held-out pairs" if pairs else f"  held-out loss on {rows} rows")
    began = time.perf_counter()
    if rewards is not None:
        result.scores[group] = reward_accuracy(rewards, model, held_out)
    else:
        result.scores[group] = (preference_accuracy if pairs else held_out_loss)(model, held_out)
    tokens = sum(batch.num_tokens for batch in held_out)
    result.speeds[group] = Speed(time.perf_counter() - began, rows, tokens, 0, None)


class _FirstToken:
    """Notes when the first token arrives; called with every one."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, row: int, token: int) -> None:
        if self.seconds is None:
            self.seconds = round(time.perf_counter() - self.started, 4)
