"""How fast answers come: time to first token, pauses between tokens, speed, and how soon a cancelled answer ends.

Nothing is trained and no text is judged, so answers run to their full length whatever they say: the stop token counts
for nothing here, as in the usual load tests of servers. One answer at a time, greedy, by the project's own decode loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nexus.config.capabilities import MIN_STREAM
from nexus.errors import NexusError
from nexus.evaluation.statistics import Vector, bootstrap_groups, wilson_interval
from nexus.rollout.generate import generate
from nexus.types import Score

STREAMING_METRICS = (
    "ttft_ms_p50",
    "ttft_ms_p95",
    "inter_token_ms_p50",
    "inter_token_ms_p95",
    "tokens_per_second",
    "cancel_in_one_token",
    "cancel_ms_p95",
)
#: First answers pay for memory and caches that later ones find ready; so many are not counted.
_WARM_UP = 3


@dataclass(frozen=True)
class Stream:
    """Times of one answer.

    Attributes:
        token_ms: from the request to each token, milliseconds.
    """

    token_ms: tuple[float, ...]

    @property
    def first_ms(self) -> float:
        """Time to the first token."""
        return self.token_ms[0]

    @property
    def pauses_ms(self) -> tuple[float, ...]:
        """Time between each token and the next."""
        return tuple(b - a for a, b in zip(self.token_ms, self.token_ms[1:], strict=False))


@dataclass(frozen=True)
class Cancel:
    """What followed the request to stop an answer.

    Attributes:
        late_tokens: tokens that still came.
        ended_ms: from the request to the end of the decode loop, milliseconds.
        in_time: whether tokens were still due at the request; else nothing was cancelled.
    """

    late_tokens: int
    ended_ms: float
    in_time: bool


@dataclass(frozen=True)
class Streaming:
    """A measurement.

    Attributes:
        scores: by name, see `STREAMING_METRICS`; milliseconds, tokens per second, or a share.
        streams: times of every answer, in the order of the prompts.
        cancels: one for each prompt.
    """

    scores: dict[str, Score]
    streams: tuple[Stream, ...]
    cancels: tuple[Cancel, ...]


def measure_streaming(
    *, model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Streaming:
    """Stream every prompt's answer once to its end, and once until another thread cancels it.

    Args:
        model: a decoder of transformers, on its device.
        tokenizer: decodes the answers.
        prompts: token ids, none empty; at least one.
        max_new_tokens: length of every answer, at least `MIN_STREAM`.

    Returns:
        Scores with 95 % intervals: quantiles and speed by bootstrap over answers, the share by Wilson's interval.

    Raises:
        NexusError: `E-CAP-04` if every answer was over before it could be cancelled.
        ValueError: no prompts, or too few tokens.
    """
    if not prompts or max_new_tokens < MIN_STREAM:
        raise ValueError(f"{len(prompts)} prompts of {max_new_tokens} new tokens; at least 1 of {MIN_STREAM}")

    def stream(prompt: Sequence[int]) -> Stream:
        return _stream(model, tokenizer, prompt, max_new_tokens)

    for prompt in prompts[:_WARM_UP]:
        stream(prompt)
    streams = tuple(stream(prompt) for prompt in prompts)
    cancels = tuple(_cancel(model, tokenizer, prompt, max_new_tokens) for prompt in prompts)
    return Streaming(_scores(streams, cancels, max_new_tokens), streams, cancels)


def _generate(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int, **watch: Any) -> None:
    generate(
        model=model,
        tokenizer=tokenizer,
        prompts=[prompt],
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        seeds=[0],
        batch_size=1,
        stop_token_ids=(),
        **watch,
    )


def _stream(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int) -> Stream:
    times: list[float] = []
    started = time.perf_counter()
    _generate(model, tokenizer, prompt, max_new_tokens, on_token=lambda row, token: times.append(time.perf_counter()))
    return Stream(tuple(1000 * (moment - started) for moment in times))


def _cancel(model: Any, tokenizer: Any, prompt: Sequence[int], max_new_tokens: int) -> Cancel:
    """Cancel from another thread, as a client that goes away does, when a quarter of the answer is there."""
    times: list[float] = []
    requests: list[float] = []
    reached, requested = threading.Event(), threading.Event()

    def on_token(row: int, token: int) -> None:
        times.append(time.perf_counter())
        if len(times) == max_new_tokens // MIN_STREAM:
            reached.set()

    def client() -> None:
        reached.wait()
        requests.append(time.perf_counter())
        requested.set()

    thread = threading.Thread(target=client, name="nexus-cancel", daemon=True)
    thread.start()
    try:
        _generate(model, tokenizer, prompt, max_new_tokens, on_token=on_token, cancelled=requested.is_set)
        ended = time.perf_counter()
    finally:
        reached.set()
        thread.join()
    late = sum(moment > requests[0] for moment in times)
    return Cancel(late, max(0.0, 1000 * (ended - requests[0])), len(times) - late < max_new_tokens)


def _scores(streams: Sequence[Stream], cancels: Sequence[Cancel], max_new_tokens: int) -> dict[str, Score]:
    stopped = [cancel for cancel in cancels if cancel.in_time]
    if not stopped:
        raise NexusError(
            "E-CAP-04",
            f"all {len(cancels)} answers were over before they could be cancelled",
            where="capabilities.streaming.max_new_tokens",
            remedy=f"longer answers: capabilities.streaming.max_new_tokens={4 * max_new_tokens}",
        )
    first = [(stream.first_ms,) for stream in streams]
    pauses = [stream.pauses_ms for stream in streams]
    in_one = sum(cancel.late_tokens <= 1 for cancel in stopped)
    return {
        "ttft_ms_p50": _score(first, _quantile(0.5)),
        "ttft_ms_p95": _score(first, _quantile(0.95)),
        "inter_token_ms_p50": _score(pauses, _quantile(0.5)),
        "inter_token_ms_p95": _score(pauses, _quantile(0.95)),
        "tokens_per_second": _score(
            [(stream.token_ms[-1],) for stream in streams], lambda ms: 1000 * max_new_tokens / float(ms.mean())
        ),
        "cancel_in_one_token": Score(in_one / len(stopped), len(stopped), wilson_interval(in_one, len(stopped))),
        "cancel_ms_p95": _score([(cancel.ended_ms,) for cancel in stopped], _quantile(0.95)),
    }


def _quantile(share: float) -> Callable[[Vector], float]:
    return lambda values: float(np.quantile(values, share))


def _score(groups: Sequence[Sequence[float]], statistic: Callable[[Vector], float]) -> Score:
    values = np.concatenate([np.asarray(group, dtype=np.float64) for group in groups])
    return Score(statistic(values), values.size, bootstrap_groups(groups, statistic))
