"""Batched sampling with log-probabilities.

Faster than `transformers.generate` where it matters here: prompts are sorted by length into left-padded batches, equal
neighboring prompts (samples of one prompt) are prefilled once, finished rows leave the batch, decoders of the Llama
family take their steps without transformers' modules (`rollout.plain`), and a token is drawn by a two-level inverse of
the cumulative distribution instead of `torch.multinomial`. Each answer has its own random stream, so it does not depend
on which other prompts share its batch (up to rounding).

Signature:
    generate(*, model, tokenizer, prompts, max_new_tokens, temperature, seeds, batch_size,
             top_p=None, stop_token_ids=None, on_token=None, cancelled=None) -> list[Generation]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nexus.rollout.cache import roomy_cache
from nexus.rollout.plain import PlainDecoder, PlainSteps, plain_decoder
from nexus.types import Generation

_BLOCK = 256


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        # not inference_mode: tensors cached inside the model (rotary tables) must stay usable for training
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def draw(*, probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one index per row by inverting the cumulative distribution, first over blocks, then within one.

    The same distribution as one long cumulative sum, at a fraction of its cost for a large vocabulary.

    Args:
        probs: [R, V], not negative; need not sum to exactly 1.
        uniform: [R] in [0, 1).

    Returns:
        [R] int64, always an index with a positive probability.
    """
    rows, vocab = probs.shape
    padded = torch.nn.functional.pad(probs, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)

    def invert(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        edges = weights.cumsum(-1)
        index = torch.searchsorted(edges, target[:, None], right=True)
        # rounding may carry the target past the last edge: then the last index that has any weight
        last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1, keepdim=True)
        index = torch.minimum(index, last)
        before = edges.gather(-1, index) - weights.gather(-1, index)
        return index[:, 0], (target - before[:, 0]).clamp(min=0)

    sums = padded.sum(-1)
    block, rest = invert(sums, uniform.to(probs) * sums.sum(-1))
    inner, _ = invert(padded[torch.arange(rows, device=probs.device), block], rest)
    return block * _BLOCK + inner


def _keep_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens that holds at least `top_p` (arXiv 1904.09751), and renormalize."""
    ordered, index = probs.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    kept = torch.zeros_like(probs).scatter_(-1, index, ordered)
    return kept / kept.sum(-1, keepdim=True)


def _pick(logits: Tensor, temperature: float, top_p: float | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Next token of each row and its log-probability, both [R], from logits [R, V] and uniform [R]."""
    logits = logits.float()
    if temperature == 0.0:
        token = logits.argmax(-1)
        return token, torch.log_softmax(logits, -1).gather(-1, token[:, None])[:, 0]
    logp = torch.log_softmax(logits / temperature, -1)
    probs = logp.exp()
    if top_p is not None and top_p < 1.0:
        probs = _keep_nucleus(probs, top_p)
        logp = probs.log()
    token = draw(probs=probs, uniform=uniform)
    return token, logp.gather(-1, token[:, None])[:, 0]


def generate(
    *,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    batch_size: int,
    top_p: float | None = None,
    stop_token_ids: Sequence[int] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Generation]:
    """Answer every prompt once; repeat a prompt (as neighbors) for several samples.

    Args:
        model: a decoder of transformers, possibly in a PEFT wrapper; left in the mode that it was in.
        tokenizer: decodes the answers.
        prompts: token ids, none empty.
        max_new_tokens: limit of each answer.
        temperature: 0 takes the most likely token, and `logprobs` are then those of the model at temperature 1;
            above 0, `logprobs` are those of the distribution that was drawn from.
        seeds: one for each prompt; unused at temperature 0.
        batch_size: answers at a time.
        top_p: nucleus; None draws from all tokens.
        stop_token_ids: what ends an answer; None means the tokenizer's end of sequence.
        on_token: called with (index of the prompt, token) as soon as a token is known.
        cancelled: asked before every pass through the model; once it says True, all answers end as they are, not
            finished, those that had not begun empty. It may be set from another thread: at most one more token comes.

    Returns:
        Answers in the order of the prompts.

    Raises:
        ValueError: if a number is out of range, a prompt is empty, or seeds and prompts differ in count.
    """
    if max_new_tokens < 1 or batch_size < 1 or temperature < 0 or (top_p is not None and not 0 < top_p <= 1):
        raise ValueError("max_new_tokens and batch_size must be positive, temperature not negative, top_p in (0, 1]")
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
    if not all(len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty")
    stops = frozenset([tokenizer.eos_token_id] if stop_token_ids is None else stop_token_ids)
    # longest first, so that lack of memory shows at once; sorted() is stable, so equal neighbors stay neighbors
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), tuple(prompts[i])))
    answers: dict[int, tuple[list[int], list[float]]] = {}
    with _evaluating(model):
        decoder = plain_decoder(model)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            if cancelled is not None and cancelled():
                answers.update((i, ([], [])) for i in rows)
                continue
            uniforms = torch.zeros(len(rows), max_new_tokens)
            if temperature > 0:
                for row, i in enumerate(rows):
                    uniforms[row] = torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seeds[i]))
            batch = _Batch(model, decoder, [prompts[i] for i in rows], rows, stops, on_token, cancelled)
            answers.update(batch.run(max_new_tokens, temperature, top_p, uniforms))
    return [_finish(*answers[i], stops, tokenizer) for i in range(len(prompts))]


def _finish(tokens: list[int], logprobs: list[float], stops: frozenset[int], tokenizer: Any) -> Generation:
    finished = bool(tokens) and tokens[-1] in stops
    text = tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=False)
    return Generation(token_ids=tuple(tokens), text=text, logprobs=tuple(logprobs), finished=finished)


class _ModelSteps:
    """A batch on its way through the model's own forward, whatever its architecture.

    Args:
        model: as in `generate`, in eval mode.
        cache: of the prompts.
        mask: [R, S] of the positions in it, 0 for padding.
        places: [R, 1] position of the token that comes.
    """

    def __init__(self, model: Any, cache: Any, mask: Tensor, places: Tensor) -> None:
        self.model = model
        self.cache = cache
        self.mask = mask
        self.places = places

    def select(self, index: Tensor) -> None:
        """Keep (or repeat) these rows."""
        self.cache.reorder_cache(index)  # the one verb that all cache kinds have
        self.mask, self.places = self.mask[index], self.places[index]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] behind the next tokens [R]."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        logits: Tensor = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.places = self.places + 1
        return logits


class _Batch:
    """One left-padded batch from prefill to its last token.

    Args:
        model: as in `generate`, in eval mode.
        decoder: computes its next tokens; None leaves that to the model.
        prompts: token ids of each row; equal neighbors are prefilled once.
        names: index that the caller gave to each row.
        stops: tokens that end a row.
        on_token: as in `generate`.
        cancelled: as in `generate`.
    """

    def __init__(
        self,
        model: Any,
        decoder: PlainDecoder | None,
        prompts: Sequence[Sequence[int]],
        names: Sequence[int],
        stops: frozenset[int],
        on_token: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.stops = stops
        self.on_token = on_token
        self.cancelled = cancelled
        self.names = list(names)
        self.device = model.get_input_embeddings().weight.device
        self.unique: list[Sequence[int]] = []
        self.owner: list[int] = []  # row -> index into unique
        for prompt in prompts:
            if not self.unique or list(self.unique[-1]) != list(prompt):
                self.unique.append(prompt)
            self.owner.append(len(self.unique) - 1)

    def _prefill(self, most: int) -> tuple[PlainSteps | _ModelSteps, Tensor]:
        """Run the prompts.

        Args:
            most: tokens that will come at most.

        Returns:
            What computes further tokens, and the logits [R, V] of the first one of each row.
        """
        width = max(map(len, self.unique))
        ids = torch.zeros(len(self.unique), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.unique):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = roomy_cache(self.model.config)
        logits: Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        places = positions[:, -1:] + 1
        steps = (
            _ModelSteps(self.model, cache, mask, places)
            if self.decoder is None
            else self.decoder.begin(cache, mask, places, most=most)
        )
        if len(self.owner) > len(self.unique):
            owner = torch.tensor(self.owner, device=self.device)
            steps.select(owner)
            return steps, logits[owner]
        return steps, logits

    def run(
        self, max_new_tokens: int, temperature: float, top_p: float | None, uniforms: Tensor
    ) -> dict[int, tuple[list[int], list[float]]]:
        """Generate until every row has stopped or is full.

        Args:
            max_new_tokens: limit of a row.
            temperature: as in `generate`.
            top_p: as in `generate`.
            uniforms: [R, max_new_tokens] random numbers.

        Returns:
            Tokens and log-probabilities by the caller's index.
        """
        steps, logits = self._prefill(max_new_tokens)
        uniforms = uniforms.to(self.device)
        names, done = self.names, [False] * len(self.names)
        answers: dict[int, tuple[list[int], list[float]]] = {name: ([], []) for name in names}
        for step in range(max_new_tokens):
            token, logp = _pick(logits, temperature, top_p, uniforms[:, step])
            for row, (t, value) in enumerate(zip(token.tolist(), logp.tolist(), strict=True)):
                if done[row]:
                    continue
                answers[names[row]][0].append(t)
                answers[names[row]][1].append(value)
                done[row] = t in self.stops
                if self.on_token is not None:
                    self.on_token(names[row], t)
            if all(done) or step == max_new_tokens - 1 or (self.cancelled is not None and self.cancelled()):
                break
            # dropping copies the whole cache: wait until an eighth of the rows is done
            if sum(done) * 8 >= len(done):
                keep = [row for row, over in enumerate(done) if not over]
                index = torch.tensor(keep, device=self.device)
                steps.select(index)
                token, uniforms = token[index], uniforms[index]
                names, done = [names[row] for row in keep], [False] * len(keep)
            logits = steps.step(token)
        return answers
