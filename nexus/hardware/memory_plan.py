"""How much memory a run needs, phase by phase, before weights are read. No torch.

The peak of training is the largest of four moments of an optimizer step (from the second on, when the optimizer has its
state): the loss of the last micro-batch, the start and the end of its backward pass, and the optimizer. What each part
weighs stands in `memory_parts`. Tests compare the sum with every tensor that torch allocates in such steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nexus.hardware import memory_parts as parts
from nexus.types import ModelFacts

GIB = 2**30


@dataclass(frozen=True)
class MemorySettings:
    """What of a run decides its memory.

    Attributes:
        precision: `fp32` or `bf16`, of the computation.
        storage: of the linear layers' weights, a key of `memory_parts.STORAGE_BITS`.
        trains_base: whether the base's own weights are trained.
        adapter_parameters: weights that an adapter adds; they are trained, in 32 bits.
        adapter_rank: rank of the adapter; 0 without.
        dora: whether the adapter is DoRA.
        optimizer: kind of optimizer, a key of `memory_parts.OPTIMIZER_BYTES`.
        checkpointing: `off`, `on` or `offload`.
        micro_batch_tokens: tokens of the largest forward and backward pass, padding included.
        longest_row: tokens of the longest row, below which no micro-batch can be cut.
        target_tokens: of `micro_batch_tokens`, those that are learned.
        several_micro_batches: whether a step has more than one, so that gradients are there while the next computes.
        chunk_tokens: positions whose logits exist at the same time.
        score_rows: answers at a time while scoring; 0 if nothing is answered.
        score_tokens: prompt and answer of the longest of them.
        prompt_tokens: of them, the prompt.
        scores_after: whether the trained model is scored.
        packages: whether a package is written and reopened.
        on_gpu: whether the limit is a device's memory; on a processor, host and device are one.
        overhead_bytes: of the process: the device's context, or interpreter and libraries.
        fragmentation: share that the allocator wastes.
        rollout_rows: answers at a time that are sampled while training; 0 if none are.
        judge_parameters: weights of a reward model beside the policy; 0 without one.
        judge_bytes: what they take.
        keeps_reference: whether what is trained is there once more, as the phase began.
    """

    precision: str
    storage: parts.Storage
    trains_base: bool
    adapter_parameters: int
    adapter_rank: int
    dora: bool
    optimizer: parts.OptimizerKind
    checkpointing: str
    micro_batch_tokens: int
    longest_row: int
    target_tokens: int
    several_micro_batches: bool
    chunk_tokens: int
    score_rows: int
    score_tokens: int
    prompt_tokens: int
    scores_after: bool
    packages: bool
    on_gpu: bool
    overhead_bytes: int
    fragmentation: float
    rollout_rows: int = 0
    judge_parameters: int = 0
    judge_bytes: int = 0
    keeps_reference: bool = False


@dataclass(frozen=True)
class MemoryItem:
    """One line of the plan.

    Attributes:
        name: what takes the memory.
        num_bytes: how much.
        reason: the arithmetic in words.
    """

    name: str
    num_bytes: int
    reason: str


@dataclass(frozen=True)
class MemoryPhase:
    """What lives together at the worst moment of a phase.

    Attributes:
        name: `score`, `rollout`, `train`, `score again` or `package`.
        moment: when within it.
        items: the lines.
    """

    name: str
    moment: str
    items: tuple[MemoryItem, ...]

    @property
    def num_bytes(self) -> int:
        """Sum of the lines."""
        return sum(item.num_bytes for item in self.items)


@dataclass(frozen=True)
class MemoryPlan:
    """What a run will need.

    Attributes:
        phases: in the order of the run.
        facts: what it was made for.
        settings: what it was made with.
    """

    phases: tuple[MemoryPhase, ...]
    facts: ModelFacts
    settings: MemorySettings

    @property
    def peak(self) -> MemoryPhase:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.num_bytes)

    @property
    def train(self) -> MemoryPhase:
        """The larger part of an optimizer step: training, or the sampling of its answers."""
        parts_of_a_step = [phase for phase in self.phases if phase.name in ("train", "rollout")]
        return max(parts_of_a_step, key=lambda phase: phase.num_bytes)

    @property
    def resident_bytes(self) -> int:
        """Weights of base and adapter, which are there before the first step."""
        return sum(item.num_bytes for item in _weights(self.facts, self.settings))

    @property
    def total_bytes(self) -> int:
        """What must be free: the largest phase, what the allocator wastes on it, and the process itself."""
        return int(self.peak.num_bytes * (1 + self.settings.fragmentation)) + self.settings.overhead_bytes

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Phase, name, size and reason of every line and of the sums, ready to print."""
        rows = []
        for phase in self.phases:
            for index, item in enumerate(phase.items):
                rows.append((phase.name if index == 0 else "", item.name, format_bytes(item.num_bytes), item.reason))
            rows.append(("", "together", format_bytes(phase.num_bytes), phase.moment))
        overhead, share = self.settings.overhead_bytes, self.settings.fragmentation
        reason = f"the largest phase ({self.peak.name}), {100 * share:g} % for fragmentation, {format_bytes(overhead)} "
        reason += "for the device's context" if self.settings.on_gpu else "for interpreter and libraries"
        return [*rows, ("total", "", format_bytes(self.total_bytes), reason)]


def format_bytes(num_bytes: float) -> str:
    """Size for people.

    Args:
        num_bytes: how many.

    Returns:
        In GiB with two digits from 0.1 GiB on, else in MiB with one.
    """
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"


def plan_memory(facts: ModelFacts, settings: MemorySettings) -> MemoryPlan:
    """Add up what a run needs.

    Args:
        facts: the model.
        settings: the run.

    Returns:
        The plan, phase by phase.
    """
    phases = [_scoring(facts, settings, again=False)] if settings.score_rows else []
    if settings.rollout_rows:
        phases.append(_rollout(facts, settings))
    phases.append(max(_moments(facts, settings), key=lambda phase: phase.num_bytes))
    if settings.score_rows and settings.scores_after:
        phases.append(_scoring(facts, settings, again=True))
    if settings.packages and not settings.on_gpu:
        phases.append(_packaging(facts, settings))
    return MemoryPlan(tuple(phases), facts, settings)


def _trained(facts: ModelFacts, settings: MemorySettings) -> int:
    return settings.adapter_parameters + (facts.num_parameters if settings.trains_base else 0)


def _weights(facts: ModelFacts, settings: MemorySettings) -> tuple[MemoryItem, ...]:
    bits = parts.STORAGE_BITS[settings.storage]
    size = parts.weight_bytes(facts, settings.storage, settings.precision)
    plain = parts.plain_storage(settings.storage, settings.precision)
    told = f"{facts.num_parameters:,} weights of {bits:g} bits"
    if settings.storage not in ("fp32", "bf16"):
        told = f"{parts.linear_parameters(facts):,} weights of {bits:.3f} bits, embeddings and head in {plain}"
    items = [MemoryItem("base weights", size, told)]
    if settings.adapter_parameters:
        count = settings.adapter_parameters
        items.append(MemoryItem("adapter weights", 4 * count, f"{count:,} weights of 32 bits"))
    return tuple(items)


def _beside(facts: ModelFacts, settings: MemorySettings) -> list[MemoryItem]:
    """What stays beside the policy from the first rollout to the end of training: its reference and a reward model."""
    items = []
    if settings.keeps_reference:
        trained = _trained(facts, settings)
        items.append(MemoryItem("reference", 4 * trained, f"{trained:,} trained weights as the phase began"))
    if count := settings.judge_parameters:
        size = settings.judge_bytes
        items.append(MemoryItem("reward model", size, f"{count:,} weights of {8 * size // count} bits"))
    return items


def _optimizer(facts: ModelFacts, settings: MemorySettings) -> MemoryItem:
    trained = _trained(facts, settings)
    size = parts.optimizer_bytes(facts, trained=trained, kind=settings.optimizer, trains_base=settings.trains_base)
    return MemoryItem("optimizer", size, f"{settings.optimizer}: {size / max(1, trained):.3g} bytes per trained weight")


def _moments(facts: ModelFacts, settings: MemorySettings) -> list[MemoryPhase]:
    """The training phase as it stands at each moment that can be its peak."""
    width, trained = 8 * parts.PRECISION_BYTES[settings.precision], _trained(facts, settings)
    shape: Any = {"precision": settings.precision, "trains_base": settings.trains_base}
    steady = [*_weights(facts, settings), *_beside(facts, settings), _optimizer(facts, settings)]
    if casts := parts.cast_bytes(facts, trains_base=settings.trains_base, precision=settings.precision):
        steady.append(MemoryItem("16-bit copies", casts, "of the linear layers' weights, for the length of a step"))
    gradients = MemoryItem("gradients", 4 * trained, f"{trained:,} trained weights of 32 bits")
    earlier = [gradients] if settings.several_micro_batches else []
    tokens = settings.micro_batch_tokens
    kept, on_host = parts.activation_bytes(
        facts,
        tokens=tokens,
        rank=settings.adapter_rank,
        dora=settings.dora,
        checkpointing=settings.checkpointing,
        **shape,
    )
    kept += 0 if settings.on_gpu else on_host
    what = {"off": "every layer", "on": "each layer's input", "offload": "layer inputs on the host"}
    activations = MemoryItem(
        "activations", kept, f"{tokens:,} tokens, {what[settings.checkpointing]}, {width} bits inside the layers"
    )
    table = facts.vocab_size * facts.hidden_size * parts.FLOAT32 if settings.trains_base else 0
    work = parts.backward_bytes(facts, tokens=tokens, **shape)
    if settings.checkpointing != "off":
        work += tokens * parts.layer_activation_bytes(facts, rank=settings.adapter_rank, **shape)
        if settings.dora:
            per_token, fixed = parts.dora_activation_bytes(facts, precision=settings.precision)
            work += tokens * per_token + fixed
    backward = MemoryItem("backward pass", work, "gradients of activations, and with checkpointing one layer again")
    # The gradient of a small embedding is made as a whole table; where it is tied, the head's waits for it, and their
    # sum is a third one. One is counted among the gradients, unless those of an earlier micro-batch stand there.
    by_index = facts.vocab_size * facts.hidden_size >= parts.LARGE_TABLE
    extra = 0 if by_index else (2 if facts.tied else 0) + (1 if settings.several_micro_batches else 0)
    tables = MemoryItem("embedding gradient", extra * table, "made as whole tables before they are added")
    head = MemoryItem("head gradient", table, "in 32 bits")
    moments = (
        ("the loss of the last micro-batch", [*earlier, activations, _loss(facts, settings)]),
        ("the start of the last backward pass", [*earlier, activations, head]),
        ("the first layers of the last backward pass", [*earlier, activations, backward]),
        ("the end of the last backward pass", [gradients, tables]),
    )
    return [
        MemoryPhase("train", moment, tuple(item for item in (*steady, *items) if item.num_bytes))
        for moment, items in moments
    ]


def _loss(facts: ModelFacts, settings: MemorySettings) -> MemoryItem:
    size = parts.loss_bytes(
        facts,
        positions=settings.target_tokens,
        chunk=settings.chunk_tokens,
        precision=settings.precision,
        trains_base=settings.trains_base,
        entropies=settings.rollout_rows > 0,
        on_gpu=settings.on_gpu,
    )
    more = ", gradient and copy of the head" if settings.trains_base else ""
    chunk = min(settings.chunk_tokens, settings.target_tokens)
    return MemoryItem("loss", size, f"logits of {chunk:,} positions at a time, {facts.vocab_size:,} tokens{more}")


def _rollout(facts: ModelFacts, settings: MemorySettings) -> MemoryPhase:
    """Sampling answers while training: no gradients and no activations, but the optimizer stays where it is."""
    items = (*_weights(facts, settings), *_answering(facts, settings, settings.rollout_rows))
    return MemoryPhase("rollout", "longest answers", (*items, *_beside(facts, settings), _optimizer(facts, settings)))


def _answering(facts: ModelFacts, settings: MemorySettings, rows: int) -> tuple[MemoryItem, MemoryItem]:
    width = int(parts.STORAGE_BITS[parts.plain_storage(settings.storage, settings.precision)]) // 8
    tokens = settings.score_tokens
    cache = parts.cache_bytes(facts, rows=rows, tokens=tokens, width=width)
    prefill = parts.prefill_bytes(facts, rows=rows, tokens=settings.prompt_tokens, width=width)
    return (
        MemoryItem("cache", cache, f"keys and values of {rows} answers of {tokens:,} tokens with their prompts"),
        MemoryItem("prompts", prefill, f"one layer's work on {rows} prompts of {settings.prompt_tokens:,} tokens"),
    )


def _scoring(facts: ModelFacts, settings: MemorySettings, *, again: bool) -> MemoryPhase:
    items = [*_weights(facts, settings), *_answering(facts, settings, settings.score_rows)]
    if again and not settings.on_gpu:
        items.append(_optimizer(facts, settings))
    return MemoryPhase("score again" if again else "score", "longest answers", tuple(items))


def _packaging(facts: ModelFacts, settings: MemorySettings) -> MemoryPhase:
    """Merging turns a quantized base into plain weights; the package is opened once more to compare logits.

    After training Lightning moves model and optimizer to the host, so a device has no part in it.
    """
    plain = parts.plain_storage(settings.storage, settings.precision)
    merged = parts.weight_bytes(facts, plain, settings.precision)
    weights = MemoryItem("weights", merged, f"in {plain}")
    if settings.adapter_parameters:
        weights = MemoryItem("merged weights", merged, f"adapter folded in, in {plain}")
    items = (
        weights,
        MemoryItem("reopened package", merged, "to compare its logits"),
        _optimizer(facts, settings),
    )
    return MemoryPhase("package", "comparing the reopened package", items)
