"""Attention per packed row, under the name `segment`.

Rows lie one after the other in one sequence `[1, T]`; each attends to itself only, so no dense `T x T` mask exists and
nothing is padded. A row may instead continue a shared prompt: it attends to the prompt and to itself, so that the
completions of one prompt compute it once. Outside `packed()` the name behaves as transformers' `sdpa`, so generation
and padded batches work with the same model object. The mask function must be registered together with the attention:
without it transformers passes no mask at all and left-padded generation silently goes wrong.

transformers' own way (restarting `position_ids`) leaks between rows as soon as a cache exists or a mask of ones is
given; that is why the plan is explicit here, and why a model that ignores it is refused by `packing_support`.

Signatures:
    make_plan(segments, completions_per_prompt=0) -> SegmentPlan
    packed() -> context manager
    packed_inputs(input_ids, plan) -> keyword arguments of the model
    enable_segments(model) -> None
    keep_uncompiled() -> None
    packing_support(model) -> PackingSupport(supported, reason)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "segment"
#: Within `packed()` the windows of the masks that the model asked for, and did not get.
_PACKED: ContextVar[set[int] | None] = ContextVar("nexus_packed", default=None)


class SegmentsUnsupportedError(NotImplementedError):
    """The model's attention has a part that segments do not have."""


@dataclass
class SegmentPlan:
    """Where the rows of a packed sequence lie. Python ints only: reading it never waits for the device.

    Attributes:
        runs: (start, rows, length): `rows` neighbors of equal length, which share one attention call.
        prompts: for each run the index of the run that holds the prompt which it continues, or None.
        used: attention layers that followed the plan (the recompute of gradient checkpointing counts again).
        windows: of the layers that followed it.
    """

    runs: tuple[tuple[int, int, int], ...]
    prompts: tuple[int | None, ...]
    used: int = 0
    windows: set[int] = field(default_factory=set)


def make_plan(segments: Sequence[tuple[int, int]], completions_per_prompt: int = 0) -> SegmentPlan:
    """Plan for rows that cover a sequence without gaps.

    Args:
        segments: (start, end) of each row, in order.
        completions_per_prompt: 0 if every row stands alone; else a prompt comes first, then that many rows which
            continue it, then the next prompt.

    Returns:
        The plan; neighbors of equal length are merged, if they continue the same prompt or none.

    Raises:
        ValueError: if rows are empty, overlap, or leave a gap.
    """
    runs: list[tuple[int, int, int]] = []
    prompts: list[int | None] = []
    at = 0
    prompt: int | None = None
    for index, (start, end) in enumerate(segments):
        if start != at or end <= start:
            raise ValueError(f"segment ({start}, {end}) does not continue at {at}")
        at = end
        is_prompt = completions_per_prompt > 0 and index % (completions_per_prompt + 1) == 0
        if runs and runs[-1][2] == end - start and prompts[-1] == prompt and not is_prompt:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, end - start)
            continue
        runs.append((start, 1, end - start))
        prompts.append(None if is_prompt else prompt)
        if is_prompt:
            prompt = len(runs) - 1
    if not runs:
        raise ValueError("a plan needs at least one segment")
    if completions_per_prompt and len(segments) % (completions_per_prompt + 1):
        raise ValueError(f"{len(segments)} segments are not prompts with {completions_per_prompt} completions each")
    return SegmentPlan(runs=tuple(runs), prompts=tuple(prompts))


@contextmanager
def packed() -> Iterator[set[int]]:
    """Within it, attention must receive a plan; no mask is built.

    Yields:
        Windows of the masks that are asked for; attention must bring each of them itself.
    """
    windows: set[int] = set()
    token = _PACKED.set(windows)
    try:
        yield windows
    finally:
        _PACKED.reset(token)


def packed_inputs(input_ids: Tensor, plan: SegmentPlan) -> dict[str, Any]:
    """What a packed forward takes besides tokens and positions.

    The mask says that nothing is padded, and `_segment_mask` makes nothing of it. Without one transformers would first
    look for rows in the positions, every time, for a mask of its own that nobody asks for.

    Args:
        input_ids: [1, T].
        plan: where its rows lie.

    Returns:
        Keyword arguments of the model.
    """
    return {"plan": plan, "attention_mask": torch.ones_like(input_ids, dtype=torch.bool)}


def _segment_mask(**kwargs: Any) -> Tensor | None:
    windows = _PACKED.get()
    if windows is None:
        mask: Tensor | None = sdpa_mask(**kwargs)
        return mask
    if kwargs.get("local_size") is not None:
        windows.add(kwargs["local_size"])
    return None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of rows of equal length; the queries are the last L of the S positions.

    Args:
        query: [R, H, L, D].
        key: [R, KV, S, D].
        value: [R, KV, S, Dv].
        scale: factor on the scores.
        dropout: probability, 0 outside training.
        window: last positions that a token sees, itself included; None for all.
        softcap: bound of the scores.

    Returns:
        [R, H, L, Dv].
    """
    length, span = query.shape[2], key.shape[2]
    if softcap is None and length == span and (window is None or window >= length):
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, dropout_p=dropout, enable_gqa=True
        )
    position = torch.arange(span, device=query.device)
    distance = position[span - length :, None] - position[None, :]
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, scale=scale, dropout_p=dropout, enable_gqa=True
        )
    return _attend_softcap(query, key, value, allowed, scale=scale, dropout=dropout, softcap=softcap)


def _attend_softcap(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, scale: float, dropout: float, softcap: float
) -> Tensor:
    """Attention with bounded scores, which SDPA does not offer.

    Args:
        query: [R, H, L, D].
        key: [R, KV, S, D].
        value: [R, KV, S, Dv].
        allowed: bool, or a float bias to add; broadcast to [R, H, L, S].
        scale: factor on the scores.
        dropout: probability, 0 outside training.
        softcap: bound of the scores.

    Returns:
        [R, H, L, Dv].
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    if allowed is not None:
        # not -inf: a padded query whose whole window is padding would be NaN, and NaN * 0 spoils the next layer's rows
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~allowed, lowest) if allowed.dtype == torch.bool else scores + allowed
    weights = torch.softmax(scores.float(), -1).to(query.dtype)
    return nn.functional.dropout(weights, dropout) @ value


def _segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    plan: SegmentPlan | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function that transformers calls in every layer; shapes [B, H, T, D] in, [B, T, H, D] out."""
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise SegmentsUnsupportedError("attention sinks and position biases have no place in segment attention")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plan is None:
        if _PACKED.get() is not None:
            raise RuntimeError("the model dropped the segment plan on the way to its attention")
        if softcap is None:
            result: tuple[Tensor, None] = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
            )
            return result
        if attention_mask is None and query.shape[2] > 1:  # sdpa_mask leaves a plain causal mask to `is_causal`
            lengths = query.shape[2], key.shape[2]
            attention_mask = torch.ones(lengths, dtype=torch.bool, device=query.device).tril(lengths[1] - lengths[0])
        out = _attend_softcap(query, key, value, attention_mask, scale=scale, dropout=dropout, softcap=softcap)
        return out.transpose(1, 2).contiguous(), None
    if attention_mask is not None or query.shape[2] != key.shape[2] or query.shape[0] != 1:
        raise ValueError("a packed forward takes one row, no attention_mask and no cache")
    plan.used += 1
    if sliding_window is not None:
        plan.windows.add(sliding_window)
    whole = (query, key, value)
    sizes = [rows * length for _, rows, length in plan.runs]
    # one split, not many slices: the backward of each slice would fill a zero tensor of the whole sequence
    pieces = [whole] if len(sizes) == 1 else list(zip(*(torch.split(x, sizes, dim=2) for x in whole), strict=True))
    parts = []
    for (_, rows, length), prompt, piece in zip(plan.runs, plan.prompts, pieces, strict=True):
        q, k, v = (_as_rows(x, rows, length) for x in piece)
        if prompt is not None:
            k, v = (
                torch.cat((before.expand(rows, -1, -1, -1), own), 2)
                for before, own in zip(pieces[prompt][1:], (k, v), strict=True)
            )
        part = _attend(q, k, v, scale=scale, dropout=dropout, window=sliding_window, softcap=softcap)
        parts.append(_in_a_row(part))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return out.contiguous(), None


def _as_rows(line: Tensor, rows: int, length: int) -> Tensor:
    """[1, H, rows * length, D] as [rows, H, length, D]; never by an index, whose backward would fill zeros as well."""
    return line if rows == 1 else torch.unflatten(line, 2, (rows, length)).squeeze(0).transpose(0, 1)


def _in_a_row(rows: Tensor) -> Tensor:
    """[rows, H, length, D] as [1, rows * length, H, D]."""
    line = rows.transpose(1, 2)
    return line if len(rows) == 1 else line.flatten(0, 1)[None]


AttentionInterface.register(NAME, _segment_attention)
AttentionMaskInterface.register(NAME, _segment_mask)


def keep_uncompiled() -> None:
    """Take the attention out of `torch.compile`: its plan differs from batch to batch, and each would be compiled anew.

    Not at import, because it loads torch's compiler, which takes longer than a small model's first step.
    """
    AttentionInterface.register(NAME, torch.compiler.disable(_segment_attention))  # type: ignore[no-untyped-call]


def enable_segments(model: Any) -> None:
    """Switch a transformers model to segment attention, once and for good.

    Never switch back and forth around a forward: the recompute of gradient checkpointing reads the name again.

    Args:
        model: a `PreTrainedModel`.
    """
    model.set_attn_implementation(NAME)


@dataclass(frozen=True)
class PackingSupport:
    """Whether rows may be packed.

    Attributes:
        supported: False means padded batches.
        reason: why not, for a warning; empty if supported.
    """

    supported: bool
    reason: str = ""


def packing_support(model: Any) -> PackingSupport:
    """Run a pack of 7 + 9 tokens and both parts alone through the body and compare.

    This measures rather than guesses: models that ignore the plan, keep recurrent state or add sinks all show here.
    A window that exists only in the model's mask shows in what is asked for, since rows longer than most windows would
    take too long. Takes 3-30 ms on a tiny model. Weights, gradients and RNG are left as they are.

    Args:
        model: a `PreTrainedModel` (or a PEFT wrapper around one).

    Returns:
        The finding; callers fall back to padded batches, never to a dense mask.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    config = base.config.get_text_config()
    if base.config._attn_implementation != NAME:
        return PackingSupport(False, f"attention is {base.config._attn_implementation}, not {NAME}")
    window = getattr(config, "sliding_window", None)
    lengths = (7, 9) if not window or window > 64 else (7, 9 + window)
    layers = config.num_hidden_layers
    device = next(base.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, sum(lengths)), generator=generator).to(device)
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    split = lengths[0]
    was_training = base.training
    base.eval()
    try:
        with torch.no_grad():
            plan = make_plan(((0, split), (split, sum(lengths))))
            with packed() as wanted:
                inputs = packed_inputs(ids, plan)
                whole = base.base_model(input_ids=ids, position_ids=positions, use_cache=False, **inputs)[0]
            parts = [
                base.base_model(input_ids=ids[:, span], position_ids=positions[:, span], use_cache=False)[0]
                for span in (slice(0, split), slice(split, None))
            ]
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return PackingSupport(False, f"{type(base).__name__} cannot run a packed row: {error}")
    finally:
        base.train(was_training)
    if plan.used != layers:
        return PackingSupport(False, f"{plan.used} of {layers} layers of {type(base).__name__} follow the plan")
    # Qwen2-MoE asks for a mask with a window even if all layers attend to everything
    others = set(getattr(config, "layer_types", None) or ["unknown"]) - {"full_attention"}
    if others and not wanted <= plan.windows:
        sizes = ", ".join(map(str, sorted(wanted - plan.windows)))
        return PackingSupport(False, f"{type(base).__name__} has windows of {sizes} tokens that only its mask knows")
    alone = torch.cat(parts, 1).float()
    error_size = ((whole.float() - alone).norm() / alone.norm().clamp(min=1e-12)).item()
    # bfloat16 keeps 8 bits: equal mathematics differs by about 1 %, a leak by 50 % and more
    limit = 1e-3 if whole.dtype == torch.float32 else 5e-2
    if not error_size < limit:
        return PackingSupport(False, f"rows of {type(base).__name__} influence each other ({error_size:.1%})")
    return PackingSupport(True)
