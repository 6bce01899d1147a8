"""Streaming: the times add up, a cancel ends the decode loop at once, and training leaves the capability out."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nexus.errors import NexusError
from nexus.evaluation import streaming
from nexus.evaluation.statistics import bootstrap_groups
from nexus.evaluation.streaming import STREAMING_METRICS, Cancel, Stream, measure_streaming
from nexus.models.loader import load_model
from nexus.rollout.generate import generate
from nexus.rollout.plain import PlainSteps
from tests import small

ARCHITECTURE = small.SIZES | {"model_type": "qwen3", "vocab_size": 61}
TOKENIZER = SimpleNamespace(eos_token_id=2, decode=lambda tokens, skip_special_tokens: " ".join(map(str, tokens)))
PROMPTS = [[5, 9, 3], [7, 7], [11, 4, 5, 6, 8]]
NEW = 12


@pytest.fixture(scope="module")
def model():
    settings = {"revision": None, "trust_remote_code": False, "seed": 1, "dtype": "fp32"}
    return load_model(path=None, architecture=ARCHITECTURE, **settings).eval()


def answer(model, **watch):
    settings = {"max_new_tokens": NEW, "temperature": 0.0, "seeds": [0] * len(PROMPTS), "stop_token_ids": ()}
    return generate(model=model, tokenizer=TOKENIZER, prompts=PROMPTS, **{"batch_size": 1, **settings, **watch})


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("limit", [1, 5])
def test_cancel_ends_every_answer_where_it_stands(model, limit: int, batch_size: int):
    tokens: list[int] = []
    whole = answer(model)
    cut = answer(
        model, on_token=lambda row, t: tokens.append(row), cancelled=lambda: len(tokens) >= limit, batch_size=batch_size
    )
    assert all(not part.finished for part in cut)
    assert all(part.token_ids == all_.token_ids[: len(part.token_ids)] for part, all_ in zip(cut, whole, strict=True))
    lengths = sorted(len(part.token_ids) for part in cut)
    # one at a time: the first answer is cut and the others never begin; together: all have the same length
    assert lengths == ([0, 0, limit] if batch_size == 1 else [-(-limit // 3)] * 3)
    assert answer(model, cancelled=lambda: False) == whole


def slow_down(monkeypatch: pytest.MonkeyPatch, model: Any, seconds: float) -> Any:
    """Make the prompts' pass and every further token take so much longer; the handle ends the former."""
    step = PlainSteps.step

    def slow(self: PlainSteps, tokens: Any) -> Any:
        time.sleep(seconds)
        return step(self, tokens)

    monkeypatch.setattr(PlainSteps, "step", slow)
    return model.register_forward_pre_hook(lambda *_: time.sleep(seconds))


def test_cancelled_before_the_first_token(model):
    calls: list[int] = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    try:
        assert [part.token_ids for part in answer(model, cancelled=lambda: True)] == [(), (), ()]
    finally:
        hook.remove()
    assert calls == []


def test_a_cancel_from_another_thread_costs_one_token_at_most(model, monkeypatch: pytest.MonkeyPatch):
    """The model is slowed to 20 ms a token, so that the cancel falls into a pass through it."""
    hook = slow_down(monkeypatch, model, 0.02)
    times: list[float] = []
    stop = threading.Event()
    moments: list[float] = []

    def cancel() -> None:
        moments.append(time.perf_counter())
        stop.set()

    timer = threading.Timer(0.07, cancel)
    try:
        timer.start()
        [part] = generate(
            model=model, tokenizer=TOKENIZER, prompts=PROMPTS[:1], max_new_tokens=64, temperature=0.0, seeds=[0],
            batch_size=1, stop_token_ids=(), cancelled=stop.is_set,
            on_token=lambda *_: times.append(time.perf_counter()),
        )  # fmt: skip
    finally:
        timer.cancel()
        hook.remove()
    assert len(part.token_ids) == len(times) < 64
    assert sum(moment > moments[0] for moment in times) <= 1


def test_the_measurement(model, monkeypatch: pytest.MonkeyPatch):
    slow = 0.004
    hook = slow_down(monkeypatch, model, slow)
    started = time.perf_counter()
    try:
        found = measure_streaming(model=model, tokenizer=TOKENIZER, prompts=PROMPTS, max_new_tokens=NEW)
    finally:
        hook.remove()
    seconds = time.perf_counter() - started
    assert tuple(found.scores) == STREAMING_METRICS
    assert [len(stream.token_ms) for stream in found.streams] == [NEW] * len(PROMPTS)
    pauses = [pause for stream in found.streams for pause in stream.pauses_ms]
    firsts = [stream.first_ms for stream in found.streams]
    assert min(pauses) >= 1000 * slow
    assert min(firsts) >= 1000 * slow
    assert sum(pauses) + sum(firsts) <= 1000 * seconds
    scores = {name: score.value for name, score in found.scores.items()}
    assert scores["inter_token_ms_p50"] == pytest.approx(np.median(pauses))
    assert scores["inter_token_ms_p95"] == pytest.approx(np.percentile(pauses, 95))
    assert scores["ttft_ms_p50"] == pytest.approx(np.median(firsts))
    total = sum(stream.token_ms[-1] for stream in found.streams) / 1000
    assert scores["tokens_per_second"] == pytest.approx(NEW * len(PROMPTS) / total)
    assert scores["cancel_in_one_token"] == 1.0
    assert found.scores["inter_token_ms_p50"].n == len(PROMPTS) * (NEW - 1)
    assert all(score.ci95[0] <= score.value <= score.ci95[1] for score in found.scores.values())
    assert all(cancel.late_tokens <= 1 and cancel.in_time for cancel in found.cancels)


def test_answers_that_cannot_be_measured_are_no_result(model, monkeypatch: pytest.MonkeyPatch):
    for prompts, new in (([], NEW), (PROMPTS, 3)):
        with pytest.raises(ValueError, match="at least"):
            measure_streaming(model=model, tokenizer=TOKENIZER, prompts=prompts, max_new_tokens=new)
    monkeypatch.setattr(streaming, "_cancel", lambda *_: Cancel(late_tokens=0, ended_ms=0.0, in_time=False))
    with pytest.raises(NexusError) as caught:
        measure_streaming(model=model, tokenizer=TOKENIZER, prompts=PROMPTS, max_new_tokens=NEW)
    assert caught.value.code == "E-CAP-04"


def test_a_failing_model_leaves_no_thread_behind(model):
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    hook = model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="broken"):
            streaming._cancel(model, TOKENIZER, PROMPTS[0], NEW)
    finally:
        hook.remove()
    assert "nexus-cancel" not in {thread.name for thread in threading.enumerate()}


def test_times_of_a_stream():
    stream = Stream((10.0, 14.0, 19.0))
    assert stream.first_ms == 10.0
    assert stream.pauses_ms == (4.0, 5.0)


def test_grouped_bootstrap_of_a_mean_is_the_normal_interval_for_many_groups_of_one():
    values = np.random.default_rng(3).gamma(2.0, 3.0, 400)
    ours = bootstrap_groups([[value] for value in values], lambda v: float(v.mean()), resamples=4000)
    half = 1.959964 * values.std(ddof=1) / 20
    assert ours == pytest.approx((values.mean() - half, values.mean() + half), rel=0.02)


def test_values_of_one_group_are_not_independent():
    groups = [[float(mean)] * 50 for mean in range(10)]
    low, high = bootstrap_groups(groups, lambda v: float(v.mean()))
    alone = bootstrap_groups([[value] for group in groups for value in group], lambda v: float(v.mean()))
    assert high - low > 4 * (alone[1] - alone[0])
    for wrong in ([], [[1.0], []], [[float("nan")]]):
        with pytest.raises(ValueError, match="no values|not finite"):
            bootstrap_groups(wrong, lambda v: float(v.mean()))
