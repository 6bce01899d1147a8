"""What each part of a run weighs: one formula per function, in bytes, over facts and plain numbers. No torch.

Activations are counted as Korthikanti et al. do, "Reducing Activation Recomputation in Large Transformer Models"
(arXiv 2205.05198, section 4), but for pre-norm decoders with RMS norms, grouped queries and a gated feed-forward part,
as transformers runs them; a test compares them with the tensors that autograd really keeps.

Letters in the formulas: P parameters, V vocabulary, D hidden size, I intermediate size, A query heads times head size,
K key-value heads times head size, n norms of a layer, q 1 with norms on queries and keys and else 0.
"""

from __future__ import annotations

from typing import Literal

from nexus.types import BLOCK_LOGITS, ModelFacts

#: Bytes per number of the computation.
PRECISION_BYTES = {"fp32": 4, "bf16": 2}
FLOAT32 = 4
#: Numbers of an embedding from which on its size rules a step's memory (`models.embedding`, `models.head`): 64 MiB.
LARGE_TABLE = 2**24
#: Model types with a norm on queries and keys, and with norms behind attention and feed-forward part as well.
_QUERY_KEY_NORM = frozenset({"qwen3", "gemma3", "gemma3_text", "olmo2"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})

Storage = Literal["fp32", "bf16", "nf4", "nf4_single", "gptq4"]
"""How the weights of the linear layers are stored; embeddings and head of a quantized model are not quantized."""

#: Bits per weight of a linear layer. nf4 (QLoRA, arXiv 2305.14314, section 3): a block of 64 weights has a scale of 8
#: bits, 256 scales share one of 32; without double quantization a scale has 32. GPTQ (arXiv 2210.17323) as its packages
#: store it: a group of 128 weights has a scale of 16 bits and a zero point of 4.
STORAGE_BITS: dict[str, float] = {
    "fp32": 32,
    "bf16": 16,
    "nf4": 4 + 8 / 64 + 32 / (64 * 256),
    "nf4_single": 4 + 32 / 64,
    "gptq4": 4 + (16 + 4) / 128,
}

OptimizerKind = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "muon", "sgd"]

#: Bytes of state per trained weight. AdamW keeps two numbers of 32 bits. The 8-bit form (arXiv 2110.02861, section 2)
#: keeps two of 8 bits and a scale of 32 bits for each 256 of both; its paged form may move to the host when the
#: device is full, so it is counted in full here. Plain SGD keeps nothing.
OPTIMIZER_BYTES: dict[str, float] = {
    "adamw": 8,
    "adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
    "muon": 8,
    "sgd": 0,
}


def embedding_parameters(facts: ModelFacts) -> int:
    """V * D for the input embedding, and once more for a head of its own."""
    return facts.vocab_size * facts.hidden_size * (1 if facts.tied else 2)


def linear_parameters(facts: ModelFacts) -> int:
    """P without embeddings; norms and biases are counted in (about one in ten thousand)."""
    return facts.num_parameters - embedding_parameters(facts)


def weight_bytes(facts: ModelFacts, storage: Storage, precision: str) -> int:
    """Bytes of the base model's weights.

    Args:
        facts: the model.
        storage: of the linear layers.
        precision: of the computation, `fp32` or `bf16`.

    Returns:
        P * bits / 8; of a quantized model, embeddings and head lie in the computation's precision.
    """
    linear = linear_parameters(facts) * STORAGE_BITS[storage] / 8
    return int(linear + embedding_parameters(facts) * STORAGE_BITS[plain_storage(storage, precision)] / 8)


def plain_storage(storage: Storage, precision: str) -> Storage:
    """How weights lie that are not quantized, or no longer: as the others, or in the computation's precision."""
    if storage in ("fp32", "bf16"):
        return storage
    return "bf16" if precision == "bf16" else "fp32"


def cast_bytes(facts: ModelFacts, *, trains_base: bool, precision: str) -> int:
    """16-bit copies that autocast makes of trained 32-bit weights and keeps for the whole step.

    Args:
        facts: the model.
        trains_base: whether the base is trained; frozen weights lie in the computation's precision already.
        precision: `fp32` or `bf16`.

    Returns:
        2 bytes per weight of a linear layer, or 0; the embedding is looked up as it is, the head's copy is short-lived.
    """
    return 2 * linear_parameters(facts) if trains_base and precision == "bf16" else 0


def optimizer_bytes(facts: ModelFacts, *, trained: int, kind: OptimizerKind, trains_base: bool) -> int:
    """State that the optimizer keeps from step to step.

    The 8-bit optimizers leave embeddings in 32 bits (arXiv 2110.02861, section 2.3).

    Args:
        facts: the model.
        trained: weights that are trained.
        kind: of optimizer.
        trains_base: whether the trained weights are the base's own.

    Returns:
        `OPTIMIZER_BYTES` per weight; for Muon one number of 32 bits per weight of the layers' matrices and AdamW's two
        for the rest, which is the embeddings.
    """
    tables = embedding_parameters(facts) if trains_base else 0
    if kind == "muon":
        return 4 * (trained - tables) + 8 * tables
    if kind in ("adamw_8bit", "paged_adamw_8bit"):
        return int((trained - tables) * OPTIMIZER_BYTES[kind]) + 8 * tables
    return int(trained * OPTIMIZER_BYTES[kind])


def layer_activation_bytes(facts: ModelFacts, *, precision: str, trains_base: bool, rank: int) -> int:
    """What autograd keeps of one decoder layer for each token.

    A norm keeps its input and, if its weight is trained, the normalized value. Attention keeps rotated queries and
    keys, values, its result, and one number per head; the feed-forward part gate, its activation, up, their product.

    - Trained in 32 bits: (2n+2)D + (2+2q)(A+K) + 4I numbers.
    - Trained under autocast: the residual stream and the norms stay in 32 bits (2nD + q(A+K)), and every projection
      reads a 16-bit copy of its own: 5D + 2(A+K) + q(A+K) + 4I.
    - Adapter in 32 bits: (n+2)D + (2+q)(A+K) + 4I, and 7 inner values of the rank.
    - Adapter under autocast: nD + q(A+K) in 32 bits, 5D + 3A + 2K + 4I + 7 ranks in 16.

    Args:
        facts: the decoder.
        precision: `fp32` or `bf16`.
        trains_base: False with an adapter.
        rank: of the adapter; 0 without.

    Returns:
        Bytes per token.
    """
    n = 4 if facts.model_type in _FOUR_NORMS else 2
    q = 1 if facts.model_type in _QUERY_KEY_NORM else 0
    hidden, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.head_dim * facts.num_heads, facts.head_dim * facts.num_kv_heads
    both = queries + keys
    small = FLOAT32 * (facts.num_heads + n)  # softmax sums of attention, root mean squares of the norms
    if precision == "fp32":
        norms = 2 * n if trains_base else n
        extra = 2 * q if trains_base else q
        return FLOAT32 * ((norms + 2) * hidden + (2 + extra) * both + 4 * inner + 7 * rank) + small
    if trains_base:
        return FLOAT32 * (2 * n * hidden + q * both) + 2 * (5 * hidden + (2 + q) * both + 4 * inner) + small
    wide = FLOAT32 * (n * hidden + q * both)
    return wide + 2 * (5 * hidden + 3 * queries + 2 * keys + 4 * inner + 7 * rank) + small


def dora_activation_bytes(facts: ModelFacts, *, precision: str) -> tuple[int, int]:
    """What autograd keeps of one decoder layer because of DoRA (arXiv 2402.09353), as PEFT 0.21 computes it.

    Each adapted matrix keeps its own result and the adapter's, 2(A+2K+2D+2I) numbers of a token. And the norm of the
    weights is taken through an identity matrix of in x in numbers: 5D^2 + A^2 + I^2, whatever the tokens.

    Args:
        facts: the decoder.
        precision: `fp32` or `bf16`.

    Returns:
        Bytes per token, and bytes per layer.
    """
    hidden, inner = facts.hidden_size, facts.intermediate_size
    queries, keys = facts.head_dim * facts.num_heads, facts.head_dim * facts.num_kv_heads
    width = PRECISION_BYTES[precision]
    return 2 * width * (queries + 2 * keys + 2 * hidden + 2 * inner), width * (5 * hidden**2 + queries**2 + inner**2)


def stream_bytes(facts: ModelFacts, *, precision: str, trains_base: bool) -> int:
    """One token of the residual stream: what a checkpointed layer keeps."""
    return facts.hidden_size * (FLOAT32 if trains_base or precision == "fp32" else 2)


def activation_bytes(
    facts: ModelFacts,
    *,
    tokens: int,
    precision: str,
    trains_base: bool,
    rank: int,
    dora: bool,
    checkpointing: str,
) -> tuple[int, int]:
    """What one micro-batch keeps for its backward pass, without the output head.

    Args:
        facts: the decoder.
        tokens: of the micro-batch, padding included.
        precision: `fp32` or `bf16`.
        trains_base: False with an adapter.
        rank: of the adapter; 0 without.
        dora: whether the adapter is DoRA.
        checkpointing: `off`; `on` keeps each layer's input and computes the layer again (arXiv 1604.06174); `offload`
            keeps those inputs in the host's memory.

    Returns:
        Bytes on the device until the backward pass begins, and bytes on the host.
    """
    layer = tokens * layer_activation_bytes(facts, precision=precision, trains_base=trains_base, rank=rank)
    if dora:
        per_token, fixed = dora_activation_bytes(facts, precision=precision)
        layer += tokens * per_token + fixed
    stream = stream_bytes(facts, precision=precision, trains_base=trains_base)
    ends = (3 if trains_base else 1) * stream  # embedding, final norm, its result; frozen ones keep the norm's input
    if checkpointing == "off":
        return facts.num_layers * layer + tokens * ends, 0
    inputs = tokens * facts.num_layers * stream
    return (inputs + tokens * ends, 0) if checkpointing == "on" else (2 * tokens * stream + tokens * ends, inputs)


def backward_bytes(facts: ModelFacts, *, tokens: int, precision: str, trains_base: bool) -> int:
    """Gradients of activations that are alive together: those of the feed-forward part and of the residual stream."""
    width = PRECISION_BYTES[precision]
    stream = stream_bytes(facts, precision=precision, trains_base=trains_base)
    return tokens * (3 * facts.intermediate_size * width + 3 * stream)


def loss_bytes(
    facts: ModelFacts,
    *,
    positions: int,
    chunk: int,
    precision: str,
    trains_base: bool,
    entropies: bool,
    on_gpu: bool,
) -> int:
    """Work of the chunked losses (`functional.sft`, `functional.logprobs`); a chunk at a time.

    A chunk's logits lie in the precision of the computation and become their gradient in place, a block of rows at a
    time; with bf16 a block has a copy in 32 bits, and entropies ask for one of their own. A trained head adds its
    gradient in 32 bits (4VD), and with bf16 on a GPU its copy of 16 bits (2VD).

    Args:
        facts: the decoder.
        positions: that are learned in the micro-batch.
        chunk: positions whose logits are made together.
        precision: `fp32` or `bf16`.
        trains_base: whether the head is trained.
        entropies: whether the method reports them, as those that sample their answers do.
        on_gpu: whether a device computes.

    Returns:
        Bytes at the worst moment.
    """
    logits = min(positions, chunk) * facts.vocab_size
    block = FLOAT32 * min(logits, max(BLOCK_LOGITS["cuda"], 2 * facts.vocab_size))
    size = PRECISION_BYTES[precision] * logits + block * ((precision == "bf16") + entropies)
    if not trains_base:
        return size
    table = facts.vocab_size * facts.hidden_size
    return size + FLOAT32 * table + (2 * table if precision == "bf16" and on_gpu else 0)


def cache_bytes(facts: ModelFacts, *, rows: int, tokens: int, width: int) -> int:
    """Keys and values of answers in progress: 2 * layers * K * width for each token.

    Args:
        facts: the decoder.
        rows: answers at a time.
        tokens: prompt and answer of one row.
        width: bytes of a number.

    Returns:
        Bytes; a window makes caches shorter, which is left out, so this is an upper bound there.
    """
    return 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * width * rows * tokens


def prefill_bytes(facts: ModelFacts, *, rows: int, tokens: int, width: int) -> int:
    """Work of the first pass over prompts: feed-forward part and stream of one layer, the last logits in 32 bits."""
    inner = rows * tokens * (3 * facts.intermediate_size + 4 * facts.hidden_size) * width
    return inner + 2 * rows * facts.vocab_size * FLOAT32
